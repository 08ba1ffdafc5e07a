"""Words of all scripts: which texts hold the same ones, and where they stand."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockrank import Document, FakeRanker
from blockrank.cli.console import printable
from blockrank.fake import shared_words, word_overlap
from blockrank.mine.pool import text_key
from blockrank.report.evidence import evidence_words as shown_words
from blockrank.retrieve import Bm25Index, matching_words
from blockrank.retrieve.terms import TERMS_VERSION, Analyser
from blockrank.text.words import document_words, fold, is_inside_word, located_words, query_words, spans_of_words
from blockrank.types import Evidence, RankedDocument

NFD = unicodedata.normalize("NFD", "Zürich")
# A query, a text that holds it, and what of the text it is.
FOUND = {
    "chinese": ("重置密码", "如果忘记了密码，请点击重置密码链接", ["密码", "重置密码"]),
    "one character of chinese": ("猫", "我喜欢猫和狗。", ["猫"]),
    "japanese across its scripts": ("東京タワー", "昨日、東京タワーに行った。", ["東京タワー"]),
    "half-width katakana": ("ガイド", "旅のｶﾞｲﾄﾞ", ["ｶﾞｲﾄﾞ"]),
    "korean with a particle": ("서울", "서울에서 만나요", ["서울"]),
    "korean in letters": (unicodedata.normalize("NFD", "서울"), "서울에서", ["서울"]),
    "thai": ("น้ำดื่ม", "เราขายน้ำดื่มสะอาด", ["น้ำดื่ม"]),
    "lao": ("ນ້ຳ", "ຂາຍນ້ຳສະອາດ", ["ນ້ຳ"]),
    "khmer": ("ទឹក", "ខ្ញុំចង់បានទឹក", ["ទឹក"]),
    "burmese": ("ရေ", "ကျွန်တော်ရေသောက်တယ်", ["ရေ"]),
    "hindi": ("पानी", "मुझे पानी चाहिए।", ["पानी"]),
    "hindi, nukta": ("क़लम", "यह क\u093cलम है", ["क\u093cलम"]),
    "tamil": ("தமிழ்", "நான் தமிழ் பேசுகிறேன்", ["தமிழ்"]),
    "bengali vowel in two parts": ("কো", "ক\u09c7\u09be", ["ক\u09c7\u09be"]),
    "decomposed in the text": ("Zürich", f"In {NFD} regnet es.", [NFD]),
    "decomposed in the query": (NFD, "In ZÜRICH regnet es.", ["ZÜRICH"]),
    "soft hyphen": ("softhyphen", "a soft\u00adhyphen here", ["soft\u00adhyphen"]),
    "zero-width space": ("blockrank", "block\u200brank", ["block\u200brank"]),
    "full width": ("full width 7", "ＦＵＬＬ ｗｉｄｔｈ ７", ["ＦＵＬＬ", "ｗｉｄｔｈ", "７"]),
    "harakat in the text": ("محمد", "قال مُحَمَّدٌ اليوم", ["مُحَمَّدٌ"]),
    "harakat in the query": ("مُحَمَّد", "قال محمد اليوم", ["محمد"]),
    "tatweel": ("محمد", "محـــمد", ["محـــمد"]),
    "alef without its hamza": ("أحمد", "احمد هنا", ["احمد"]),
    "persian joiner": ("می\u200cخواهم", "من میخواهم", ["میخواهم"]),
    "hebrew points": ("שלום", "שָׁלוֹם עולם", ["שָׁלוֹם"]),
    "hebrew geresh": ("ג'ורג'", "ג׳ורג׳ כאן", ["ורג"]),
    "turkish dotted capital": ("istanbul", "İSTANBUL'da", ["İSTANBUL"]),
    "turkish dotless letter": ("ISPARTA", "ısparta gülü", ["ısparta"]),
    "sharp s": ("strasse", "Die Straße und die STRAẞE", ["Straße", "STRAẞE"]),
    "ligature": ("office", "the oﬃce", ["oﬃce"]),
    "final sigma and capitals without accents": ("Σίσυφος", "Ο ΣΙΣΥΦΟΣ", ["ΣΙΣΥΦΟΣ"]),
    "russian stress": ("замок", "за\u0301мок на горе", ["за\u0301мок"]),
    "okina": ("Hawai'i", "Hawaiʻi and Hawai’i", ["Hawai", "Hawai"]),
    "ukrainian apostrophe": ("п'ять", "п’ять і пʼять", ["ять", "ять"]),
    "digits of another script": ("1984", "साल १९८४ और ١٩٨٤", ["१९८४", "١٩٨٤"]),
    "one letter": ("C", "Written in C.", ["C"]),
    "one letter in quotes": ("C", "Plan 'C' it is", ["C"]),
    "one digit": ("7", "Windows 7 or 10", ["7"]),
    "plus and sharp": ("C++", "C++ is not C#", ["C++", "C"]),
    "trade mark": ("Foo", "Foo™ works", ["Foo"]),
    "abbreviation": ("USA", "the U.S.A. and France", ["U.S.A"]),
    "emoji with its variant": ("❤", "I ❤️ you", ["❤️"]),
    "emoji put together": ("🔬", "👩\u200d🔬 at work", ["🔬"]),
    "flag": ("🇩🇪", "🇫🇷🇩🇪", ["🇩🇪"]),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_word_is_found_and_marked_however_it_is_written(name: str) -> None:
    query, text, marked = FOUND[name]
    index = Bm25Index.build([Document("nothing of it", "other"), Document(text, "it")])
    assert list(index.search(query, 5)) == ["it"]
    assert [text[start:end] for start, end in matching_words(query, text)] == marked
    assert set(query_words(query)) & set(document_words(text))
    assert word_overlap(query, text) > 0


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("重置密码", "重要的码头"),
        ("서울", "울릉도"),
        ("🇩🇪", "🇩🇰 🇪🇪"),
        ("पानी", "पाना"),
        ("Zürich", "Zurich"),
        ("3", "3.14159 of 2023"[2:]),
        ("résumé", "resume"),
    ],
)
def test_another_word_is_not_found(query: str, text: str) -> None:
    assert Bm25Index.build([Document(text, "a")]).search(query, 5) == {}
    assert matching_words(query, text) == []
    assert word_overlap(query, text) == 0


def test_names_that_look_like_stop_words_come_first() -> None:
    texts = {"pronoun": "It is raining, and it is cold.", "name": "Ask the IT department.", "none": "Rain."}
    index = Bm25Index.build([Document(text, name) for name, text in texts.items()])
    assert list(index.search("IT", 5)) == ["name", "pronoun"]
    assert list(index.search("it", 5)) == ["pronoun", "name"]
    assert list(index.search("it rain", 5)) == list(index.search("rain", 5)) == ["none", "pronoun"]
    assert list(index.search("IS IT", 5)) == ["pronoun", "name"]  # capitals say nothing where all are


def test_single_characters_count_beside_other_words() -> None:
    texts = {"c": "vitamin C", "d": "vitamin D", "i": "I like vitamin pills"}
    index = Bm25Index.build([Document(text, name) for name, text in texts.items()])
    assert next(iter(index.search("vitamin D", 3))) == "d"
    assert next(iter(index.search("I take vitamin C", 3))) == "c"


def test_lengths_count_neither_stop_words_nor_single_characters() -> None:
    long, short = Document("rain is on a b c d 7 8 9 of the and", "long"), Document("rain", "short")
    scores = Bm25Index.build([long, short]).search("rain", 2)
    assert scores["long"] == scores["short"]


def test_the_double_marks_words_in_the_callers_text() -> None:
    document = Document("如果忘记了密码，请点击重置密码链接", "d", f"{NFD} पानी")
    found = shared_words("重置密码 पानी Zürich", document)
    assert [(item.field, item.start, item.end) for item in found] == [
        ("title", 0, 7), ("title", 8, 12), ("text", 5, 7), ("text", 11, 15),
    ]  # fmt: skip
    assert sum(item.share for item in found) == pytest.approx(1)
    ranking = FakeRanker().rank("पानी", ["खाना", "पानी"])
    assert [entry.score for entry in ranking] == [1.0, 0.0]


def test_tokens_are_put_together_with_their_marks_and_not_over_words_of_unspaced_scripts() -> None:
    texts = {
        "पानी": ["प", "ा", "नी"],
        "忘记密码": ["忘记", "密码"],
        NFD: ["Zu", "\u0308rich"],
        "น้ำดี": ["น", "้", "ำ", "ดี"],
    }
    expected = [["पानी"], ["忘记", "密码"], [NFD], ["น้ำ", "ดี"]]
    for (text, tokens), words in zip(texts.items(), expected, strict=True):
        ends = [sum(map(len, tokens[: at + 1])) for at in range(len(tokens))]
        parts = [Evidence("text", end - len(token), end, 0.1) for token, end in zip(tokens, ends, strict=True)]
        found = shown_words(RankedDocument(1, 1.0, 0, Document(text, "d"), evidence=tuple(parts)))
        assert [text[item.start : item.end] for item in found] == words


def test_a_word_is_shown_whole_where_a_tokenizer_leaves_out_its_marks() -> None:
    document = Document("सेहत बच्चों Tren\u00adnung", "d")
    parts = [(0, 1), (2, 4), (5, 6), (6, 7), (8, 9), (12, 16), (17, 21)]
    evidence = tuple(Evidence("text", start, end, 0.1) for start, end in parts)
    found = shown_words(RankedDocument(1, 1.0, 0, document, evidence=evidence))
    shown = [(document.text[item.start : item.end], round(item.share, 1)) for item in found]
    assert shown == [("सेहत", 0.2), ("बच्चों", 0.3), ("Tren\u00adnung", 0.2)]


def test_copies_are_known_in_any_form() -> None:
    assert text_key(NFD) == text_key("ZÜRICH ") != text_key("Zurich")
    assert text_key("\u200b\u00ad") == text_key(" ")
    assert text_key("ＦＵＬＬ width") == text_key("full  width")


def test_what_belongs_to_a_script_is_no_control_character() -> None:
    assert printable("می\u200cخواهم 👩\u200d🔬 voilà\u00a0!") == "می\u200cخواهم 👩\u200d🔬 voilà !"
    assert printable("soft\u00adhyphen\u200b") == "softhyphen"
    assert printable("\x1b[31m \u202e \x00") == "\ufffd[31m \ufffd \ufffd"


ANY = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(
            "aI.'’ \u0301\u0307\u0308\u00ad\u200b\u200d+#_7ıİςΣά가ᅡᆨ漢かｶﾞไน้ำप\u093fक्ل\u064eا\u0654\u0640🇩🇪❤️ﬁ™"
        ),
    ),
    max_size=12,
)


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_folding_is_stable_and_blind_to_the_form_of_a_text(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    assert fold(forms[0]) == fold(forms[1])
    assert document_words(forms[0]) == document_words(forms[1])


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_words_stand_where_they_are_said_to(text: str) -> None:
    located = located_words(text)
    assert sorted(word.text for word in located) == sorted(document_words(text))
    assert set(query_words(text)) <= set(document_words(text))
    assert all(0 <= word.start < word.end <= len(text) for word in located)
    assert [word.start for word in located] == sorted(word.start for word in located)
    spans = spans_of_words(text, lambda _: True)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    for word in located:  # a word alone is the same word
        assert word.text in document_words(text[word.start : word.end])


@given(ANY, st.integers(-1, 13))
@settings(max_examples=200, deadline=None)
def test_a_word_holds_what_is_inside_it(text: str, position: int) -> None:
    if is_inside_word(text, position):
        assert any(word.start < position < word.end for word in located_words(text))


def test_words_take_time_in_proportion_to_the_text() -> None:
    for piece in ("a'", "C+", "मि", "漢", "a.", "a\u0301", "\u00ad", "🇩"):
        assert len(document_words(piece * 100_000)) <= 250_000
        assert len(located_words(piece * 20_000)) <= 50_000


def test_other_terms_have_another_version() -> None:
    """What was found before is not mixed with what other terms find: where this fails, raise TERMS_VERSION."""
    text = "The IT team's C++ in the U.S.A., running 7 重置密码 पानी Zürich مُحَمَّد ＦＵＬＬ don't 🔬"
    assert TERMS_VERSION == 2
    assert Analyser().of_document(text) == [
        " the",
        " it",
        "team",
        " c",
        "c++",
        " in",
        " the",
        "usa",
        "run",
        " 7",
        " 重",
        " 置",
        " 密",
        " 码",
        "重置",
        "置密",
        "密码",
        "पानी",
        "zürich",
        "محمد",
        "full",
        "don",
        " 🔬",
        " IT",
    ]
    assert Analyser().of_query(text) == [
        " it",
        "team",
        " c",
        "c++",
        "usa",
        "run",
        " 7",
        "重置",
        "置密",
        "密码",
        "पानी",
        "zürich",
        "محمد",
        "full",
        "don",
        " 🔬",
        " IT",
    ]
