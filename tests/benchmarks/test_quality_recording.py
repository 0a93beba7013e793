"""Results are added to the file, and a new measurement keeps what people added to the one before."""

from pathlib import Path

from benchmarks.quality.recording import Stopwatch, file_of, known_of, with_verdicts, write_results


def pair(up: str, down: str, read: bool | None) -> dict[str, object]:
    return {"up": up, "down": down, "read": read, "read_other": None}


def test_a_verdict_stays_with_a_pair_that_came_out_the_same() -> None:
    before = {"pairs": [pair("glad", "sad", True), pair("warm", "cold", False)]}
    found = with_verdicts(before, {"model": "m", "pairs": [pair("glad", "sad", None), pair("warm", "cool", None)]})
    assert found == {"model": "m", "pairs": [pair("glad", "sad", True), pair("warm", "cool", None)]}
    assert with_verdicts({"random": before["pairs"]}, {"random": [pair("warm", "cold", None)]}) == {
        "random": [pair("warm", "cold", False)]
    }


def test_pairs_that_nobody_read_have_no_verdict() -> None:
    assert with_verdicts({}, {"pairs": [pair("glad", "sad", None)]}) == {"pairs": [pair("glad", "sad", None)]}


def test_processor_time_counts_work_and_no_waiting() -> None:
    watch = Stopwatch()
    sum(range(1000))
    spent = watch.spent()
    assert 0 <= spent.processor_seconds <= spent.seconds + 1


def test_results_of_other_data_are_not_taken_for_known(tmp_path: Path) -> None:
    path, about = tmp_path / "found.json", {"model": "tiny", "data": "1a"}
    assert known_of(path, about, "arms") == {}
    write_results(path, {**about, "date": "2026-12-03", "arms": {"add": 1}})
    assert known_of(path, about, "arms") == {"add": 1}
    for other in ({"model": "other"}, {"data": "2b"}, {"instruction": "new"}):
        assert known_of(path, about | other, "arms") == {}


def test_results_of_one_model_do_not_overwrite_those_of_another(tmp_path: Path) -> None:
    path = tmp_path / "field.json"
    for model in ("a-0.5b", "folder/A-0.5b.gguf"):
        assert file_of(model, path, "a-0.5b") == path
        assert file_of(model, path, "other") == tmp_path / "field.a-0.5b.json"
