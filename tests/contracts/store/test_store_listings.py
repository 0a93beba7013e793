"""What every store promises of its listings: order, filters, pages, cursors."""

from typing import Any

import pytest

from steering.errors import (
    InvalidRequest,
    LimitExceeded,
)
from steering.store.records import JobRecord
from steering.store.store import Store
from tests.contracts.stores import a_vector, names


class TestFinding:
    @pytest.fixture
    async def filled(self, store: Store) -> Store:
        await store.shared.vectors.put(a_vector("b_2", description="50% Warm_th", tags=("warm", "x")))
        await store.shared.vectors.put(a_vector("a.1", description="STRASSE und ÉCLAIR", tags=("warm_er",)))
        await store.shared.vectors.put(a_vector("bx2", description="plain", tags=("cold",), method="pca"))
        await store.shared.vectors.put(a_vector("a-1", description="old words", tags=("warm",)))
        await store.shared.vectors.put(a_vector("a-1", description="new words", tags=(), method="probe"))
        return store

    async def test_the_newest_of_each_name_ordered_by_name(self, filled: Store) -> None:
        page = await filled.shared.vectors.find()
        assert [vector.id for vector in page.items] == ["a-1@2", "a.1@1", "b_2@1", "bx2@1"]
        assert page.next_cursor is None

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ({"tag": "warm"}, ["b_2"]),
            ({"tag": "warm_er"}, ["a.1"]),
            ({"tag": "war"}, []),
            ({"method": "pca"}, ["bx2"]),
            ({"method": "mean"}, []),
            ({"search": "50%"}, ["b_2"]),
            ({"search": "%"}, ["b_2"]),
            ({"search": "b_2"}, ["b_2"]),
            ({"search": "_"}, ["b_2"]),
            ({"search": "/"}, []),
            ({"search": "\\"}, []),
            ({"search": "WORDS"}, ["a-1"]),
            ({"search": "old"}, []),
            ({"search": "straße"}, ["a.1"]),
            ({"search": "éclair"}, ["a.1"]),
            ({"search": "'; DROP TABLE vectors; --"}, []),
            ({"search": ""}, ["a-1", "a.1", "b_2", "bx2"]),
            ({"tag": "warm", "method": "mean_difference", "search": "warm"}, ["b_2"]),
            ({"tag": "warm", "method": "pca"}, []),
        ],
    )
    async def test_every_given_field_must_match_literally(
        self, filled: Store, wanted: dict[str, Any], expected: list[str]
    ) -> None:
        assert await names(filled, **wanted) == expected

    @pytest.mark.parametrize(
        "wanted",
        [
            {"search": "a\x00"},
            {"search": "\ud800"},
            {"search": "x" * 257},
            {"tag": "' OR 1=1"},
            {"tag": "WARM"},
            {"method": "pca\x00"},
        ],
    )
    async def test_filters_that_nothing_could_match_are_refused(self, filled: Store, wanted: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest):
            await filled.shared.vectors.find(**wanted)

    async def test_pages_follow_each_other_without_gap_or_repeat(self, filled: Store) -> None:
        seen: list[str] = []
        cursor = None
        for size in (1, 2, 1):
            page = await filled.shared.vectors.find(size, cursor)
            seen += [vector.name for vector in page.items]
            cursor = page.next_cursor
        assert seen == ["a-1", "a.1", "b_2", "bx2"]
        assert cursor is None
        with pytest.raises(InvalidRequest):
            await filled.shared.vectors.find(0)
        with pytest.raises(LimitExceeded):
            await filled.shared.vectors.find(201)

    async def test_a_page_goes_on_where_its_last_name_was_deleted(self, filled: Store) -> None:
        page = await filled.shared.vectors.find(2)
        await filled.shared.vectors.delete("a.1")
        assert [vector.name for vector in (await filled.shared.vectors.find(2, page.next_cursor)).items] == [
            "b_2",
            "bx2",
        ]

    async def test_a_cursor_it_did_not_give_out_is_refused(self, filled: Store) -> None:
        for index in range(2):
            await filled.shared.jobs.put(JobRecord(id=f"job-{index}", kind="extract", status="queued"))
        of_jobs = (await filled.shared.jobs.find(1)).next_cursor
        of_vectors = (await filled.shared.vectors.find(1)).next_cursor
        assert of_jobs is not None
        assert of_vectors is not None
        for wrong in ("", "x", "a-1", of_jobs, of_vectors + "=", of_vectors[:-1], "é", "\ud800", "A" * 10_000):
            with pytest.raises(InvalidRequest):
                await filled.shared.vectors.find(1, wrong)
        for wrong in ("", of_vectors, "am9iOng="):
            with pytest.raises(InvalidRequest):
                await filled.shared.jobs.find(1, wrong)
