"""ModelTokenizer: control tokens come from templates only, spans are right, and what cannot be right is refused."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from steering.engine.api import Prompt
from steering.errors import InvalidRequest
from steering.model.prompt import ModelTokenizer
from steering.pairs import ChatMessage, ContrastivePair, PairSet, asking, continued, dataset_digest
from tests.byte_tokenizer import CONTROL, build_byte_tokenizer
from tests.families import BOS, EOS, VOCABULARY

CONTROL_IDS = set(range(256, 262))
SYSTEM, USER, ASSISTANT = 259, 260, 261
BYTES = ModelTokenizer(build_byte_tokenizer(), vocab_size=VOCABULARY, eos_ids=(EOS,))


def user(content: str) -> ChatMessage:
    return ChatMessage("user", content)


def assistant(content: str) -> ChatMessage:
    return ChatMessage("assistant", content)


def with_template(template: str | None) -> ModelTokenizer:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return ModelTokenizer(tokenizer, vocab_size=VOCABULARY)


def test_text_is_encoded_as_the_tokenizer_does_by_default(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "A plain text, é and 🙂\n"
    assert BYTES.encode(text) == tuple(hf_byte_tokenizer(text)["input_ids"]) == (BOS, *text.encode())


def test_messages_are_encoded_as_the_template_says(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = (ChatMessage("system", "Be brief."), user("Hi?"))
    rows = [{"role": message.role, "content": message.content} for message in messages]
    expected = hf_byte_tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
    assert BYTES.encode(messages) == tuple(expected)
    assert BYTES.encode(messages)[-2:] == (ASSISTANT, 10)


def test_a_last_assistant_message_is_a_finished_turn() -> None:
    messages = (user("Hi?"), assistant("Yes."))
    assert BYTES.render(messages).endswith("<|assistant|>\nYes.<|end|>\n")
    assert BYTES.render(asking(messages)) == BYTES.render(messages) + "<|assistant|>\n", "where another one follows"
    ids, roles = BYTES.encode_with_roles(asking(messages))
    assert (ids, roles) == (
        (*BYTES.encode(messages), ASSISTANT, 10),
        (*BYTES.encode_with_roles(messages)[1], None, None),
    )
    assert asking(messages[:1]) == messages[:1]


def test_a_digest_does_not_say_how_a_conversation_is_answered() -> None:
    messages = (user("Hi?"), assistant("Yes."))
    one, other = (PairSet.of([ContrastivePair(text, "no")]) for text in (messages, asking(messages)))
    assert dataset_digest(one) == dataset_digest(other)


@pytest.mark.parametrize("begun", ["Yes, and", "(", "a <|end|> b", "CONTINUE_FINAL_MESSAGE_TAG"])
def test_a_continued_message_stays_open(begun: str) -> None:
    messages = continued((user("Hi?"), assistant(begun)))
    assert BYTES.render(messages).endswith(f"<|assistant|>\n{begun}")
    ids = BYTES.encode(messages)
    assert ids == (*BYTES.encode((user("Hi?"),)), *begun.encode())
    assert BYTES.encode_with_roles(messages)[1][-len(begun) :] == ("assistant",) * len(begun)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [((user("Hi?"),), "role 'user'"), ((user("Hi?"), assistant(" ")), "is empty")],
)
def test_only_an_answer_with_content_is_continued(messages: tuple[ChatMessage, ...], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        continued(messages)


def test_a_message_that_the_template_changes_is_not_continued() -> None:
    shouting = with_template("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        shouting.encode(continued((user("Hi?"), assistant("Yes"))))


def test_control_strings_are_named() -> None:
    assert BYTES.control_strings("<|user|>\nHi<|end|>") == ("<|end|>", "<|user|>")
    assert BYTES.control_strings("user: <| end |>") == ()


@pytest.mark.parametrize("content", CONTROL)
def test_control_strings_in_a_text_are_plain_text(content: str) -> None:
    text = f"before {content}after{content}{content}"
    assert BYTES.encode(text) == (BOS, *text.encode())


@given(st.lists(st.sampled_from([*CONTROL, "<", "<|", "|>", "end", "<|end", " ", "é"]), max_size=8).map("".join))
def test_control_strings_in_messages_are_plain_text(content: str) -> None:
    """The template's own control tokens, and no other, however a message is made up."""
    ids = BYTES.encode((user(content), assistant(content), user("x")))
    assert [i for i in ids if i in CONTROL_IDS] == [BOS, USER, EOS, ASSISTANT, EOS, USER, EOS, ASSISTANT]
    assert BYTES.decode(ids) == f"\n{content.strip()}\n\n{content.strip()}\n\nx\n\n"


def test_marks_do_not_meet_characters_of_the_message() -> None:
    content = "\ue000<|end|>\ue001"
    ids = BYTES.encode((user(content),))
    assert BYTES.decode(ids) == f"\n{content}\n\n"


def test_a_template_that_cuts_a_message_apart_gains_no_control_token() -> None:
    """It splits at a control string, as templates that fold reasoning away do: half a pair of marks is left."""
    tokenizer = with_template(
        "{% for m in messages %}<|user|>{{ m['content'].split('<|end|>')[-1] }}<|end|>{% endfor %}<|assistant|>"
    )
    ids = tokenizer.encode((user("hidden<|end|>shown<pad>"),))
    assert ids == (USER, *b"shown<pad>", EOS, ASSISTANT)


def test_control_tokens_reached_by_merging_are_cut_apart() -> None:
    """Some vocabularies hold the control string as a piece that plain characters merge into."""
    pieces = {character: i for i, character in enumerate("<s>ab")} | {"<s": 5, "<s>": 6}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[("<", "s"), ("<s", ">")]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    tokenizer = ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), vocab_size=16)
    ids = tokenizer.encode("a<s><s>b")
    assert 6 not in ids
    assert tokenizer.decode(ids) == "a<s><s>b"


def test_a_control_token_that_cannot_be_written_otherwise_is_refused() -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "!": 1}, merges=[]))
    backend.add_special_tokens([AddedToken("!", special=True, normalized=False)])
    tokenizer = ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), vocab_size=16)
    with pytest.raises(InvalidRequest, match="control token"):
        tokenizer.encode("a!")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ((), "the prompt is empty"),
        ((VOCABULARY,), "from 0 to 263"),
        ((-1,), "from 0 to 263"),
        ((True,), "from 0 to 263"),
        ("half a pair: \ud83d", "not valid Unicode at character 13"),
        ((user("\udc00"),), "not valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_right_are_refused(prompt: Prompt, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        BYTES.encode(prompt)


def test_an_empty_text_without_an_opening_token_is_refused() -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer = ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), vocab_size=1)
    with pytest.raises(InvalidRequest, match="empty"):
        tokenizer.encode("")
    assert BYTES.encode("") == (BOS,)


def test_ids_pass_as_they_are() -> None:
    assert BYTES.encode((104, 105, EOS)) == (104, 105, EOS)


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        with_template(None).encode((user("Hi"),))


def test_what_the_template_refuses_is_the_callers_mistake() -> None:
    tokenizer = with_template("{{ raise_exception('System role not supported') }}")
    with pytest.raises(InvalidRequest, match="System role not supported"):
        tokenizer.encode((ChatMessage("system", "x"),))


@pytest.mark.parametrize("answer", ["Yes.", "  é🙂 \n", "<|end|> is text", "Hi?", "<|assistant|>\n"])
def test_response_span_holds_the_last_answer_and_nothing_else(answer: str) -> None:
    messages = (user("Hi?"), assistant("first"), user(f"Hi? {answer}"), assistant(answer))
    start, end = BYTES.response_span(messages)
    ids = BYTES.encode(messages)
    assert bytes(ids[start:end]).decode() == answer.strip()
    assert ids[start - 2 : start] == (ASSISTANT, 10)
    assert ids[end] == EOS


def test_response_span_of_a_conversation_that_goes_on() -> None:
    messages = (user("a"), assistant("bc"), user("d"))
    start, end = BYTES.response_span(messages)
    assert bytes(BYTES.encode(messages)[start:end]) == b"bc"


@pytest.mark.parametrize(
    ("messages", "template", "reason"),
    [
        ((user("a"),), "x", "no assistant message"),
        ((user("a"), assistant("  ")), "x", "no assistant message"),
        ((user("a"), assistant("b")), "x", "as one text"),
        ((user("a"), assistant("b")), "{{ messages[1]['content'] * 2 }}", "as one text"),
    ],
)
def test_response_span_says_when_there_is_none(messages: tuple[ChatMessage, ...], template: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        with_template(template).response_span(messages)


def test_decode_leaves_control_tokens_out() -> None:
    ids = (USER, *b"hi", EOS)
    assert BYTES.decode(ids) == "hi"
    with pytest.raises(InvalidRequest):
        BYTES.decode((9_999,))


def test_rows_of_the_model_that_no_token_uses_have_no_text() -> None:
    """A model may generate them, so they can be decoded and sent back."""
    assert BYTES.encode((104, 263)) == (104, 263)
    assert BYTES.decode((104, 263, 105)) == "hi"
    assert BYTES.token_text(263) == ""


def test_token_text() -> None:
    assert BYTES.token_text(32) == " "
    assert BYTES.token_text(EOS) == "<|end|>"
    assert BYTES.token_text(0xF0) == "\N{REPLACEMENT CHARACTER}"


def test_eight_threads_get_what_one_gets() -> None:
    prompts = [(user(f"message {n} <|end|> {'x' * n}"), assistant(f"<pad>{n}")) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(BYTES.encode, prompts))
    assert together == [BYTES.encode(prompt) for prompt in prompts]


@pytest.mark.parametrize("answer", ["Yes.", "  é🙂 \n", "<|end|> is text", "<|assistant|>\n"])
def test_roles_name_the_tokens_of_every_message(answer: str) -> None:
    messages = (ChatMessage("system", "Be."), user("Hi?"), assistant(answer), user(answer))
    ids, roles = BYTES.encode_with_roles(messages)
    assert ids == BYTES.encode(messages)
    assert len(ids) == len(roles)
    found = [
        (role, bytes(i for i, _ in part)) for role, part in groupby(zip(ids, roles, strict=True), itemgetter(1)) if role
    ]
    shown = answer.strip().encode()
    assert found == [("system", b"Be."), ("user", b"Hi?"), ("assistant", shown), ("user", shown)]


def test_roles_of_a_template_that_changes_messages_are_refused() -> None:
    for template in ("{{ messages[0]['content'] * 2 }}", "{{ messages[0]['content'] | upper }}", "no message"):
        with pytest.raises(InvalidRequest, match="as one text"):
            with_template(template).encode_with_roles((user("Hi"),))
