import functools
import pickle
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midb.guards import (
    DEFAULT_GUARDS,
    absurd_length,
    check,
    empty,
    leak,
    leftover,
    loop,
    lost_code,
    lost_placeholder,
    lost_url,
    script_drift,
    truncated,
    wrong_language,
)
from midb.schema import Completion, Pair

STOP, LENGTH = Completion("", "stop"), Completion("", "length")

FRENCH = "La pomme est un fruit rouge et sucré que l'on cueille en automne."
GERMAN = "Der Apfel ist eine rote und süße Frucht, die man im Herbst erntet."
INDONESIAN = "Buah apel ini berwarna merah dan rasanya sangat manis sekali."
MALAY = "Epal ini berwarna merah dan anda boleh membelinya di kedai runcit."
ENGLISH = "The apple is a red and sweet fruit that people pick in autumn."
RUSSIAN = "Яблоко — это красный и сладкий фрукт, который собирают осенью."
BULGARIAN = "Ябълката е червен и сладък плод, който хората берат през есента."
KOREAN = "사과는 가을에 수확하는 빨갛고 달콤한 과일입니다."
CODE = "```python\ndef f(x):\n    return x + 1\n```"


def pair(response: str, instruction: str = "Décris une pomme en une phrase.", given: str = "") -> Pair:
    return Pair(instruction, given, response)


def refused(before: str, after: str, language: str | None = "fr") -> str:
    """The code for a changed response; empty when it may stand."""
    return (check(DEFAULT_GUARDS, pair(before), pair(after), language, STOP) or "").split(":")[0]


def test_text_that_did_not_parse_is_refused_whatever_guards_were_chosen():
    assert check((), pair(FRENCH), None, "fr", STOP) == "unparsed"
    assert check((), pair(FRENCH), None, "fr", LENGTH) == "truncated"


def test_the_first_guard_with_a_reason_is_heard():
    both = pair("")
    assert check((truncated, empty), pair(FRENCH), both, "fr", LENGTH).startswith("truncated")
    assert check((empty, truncated), pair(FRENCH), both, "fr", LENGTH).startswith("empty")


def test_every_code_is_the_name_of_its_guard_and_every_guard_can_be_pickled():
    for guard in DEFAULT_GUARDS:
        assert pickle.loads(pickle.dumps(guard)) is guard
    assert len({guard.__name__ for guard in DEFAULT_GUARDS}) == len(DEFAULT_GUARDS)


def test_a_guard_needs_no_name():
    shorter = functools.partial(lambda limit, raw, new, *_: "too_long" if len(new.response) > limit else None, 50)
    assert check((empty, shorter), pair("Oui"), pair(FRENCH), "fr", STOP) == "too_long"
    assert check((empty, shorter), pair("Oui"), pair("Non"), "fr", STOP) is None


def test_a_richer_answer_may_stand():
    assert refused("Une pomme.", FRENCH) == ""
    assert refused(FRENCH, FRENCH + "\n\n- **Couleur** : rouge\n- **Saison** : automne") == ""


def test_an_emptied_response_or_instruction_is_refused_but_an_emptied_input_is_not():
    assert refused(FRENCH, "") == "empty"
    assert refused(FRENCH, " \n\u200b") == "empty"
    assert empty(pair(FRENCH), pair(FRENCH, instruction=""), "fr", STOP) == "empty: instruction"
    assert empty(pair(FRENCH, given="x"), pair(FRENCH), "fr", STOP) is None
    assert empty(pair(""), pair(" "), "fr", STOP) is None


def test_a_cut_text_is_refused_where_that_is_certain():
    assert truncated(pair(FRENCH), pair(FRENCH + " Elle"), "fr", LENGTH)
    assert refused(FRENCH, f"{FRENCH}\n```python\nprint(1") == "truncated"
    assert refused(FRENCH, FRENCH[:34]) == "truncated"
    assert refused(FRENCH, "Oui. C'est rouge. C'est bon. On la cueille quand vient le mois de septemb") == "truncated"


CUT = [
    "Voici trois raisons :\n\n- Elle est bonne.\n- Elle est rouge et suc",
    "Elle est rouge. On la cueille quand vient le mo",
    "On la mange crue, cuite ou en compote, et l'on en fait aussi du ci",
    "On la mange de plusieurs façons (crue, cuite",
    "On la mange crue ou cuite en automne, en compote,",
    "Voici deux raisons :\n\n- la couleur\n-",
    "Voici deux raisons :\n\n1. la couleur\n2. **",
    "リンゴは「赤い果物",
]


@pytest.mark.parametrize("text", CUT)
def test_a_cut_text_that_is_said_to_be_whole_is_often_seen(text):
    cider = pair(FRENCH, "Décris une pomme et le cidre en une phrase.")
    assert truncated(cider, cider._replace(response=text), "fr", STOP)
    assert truncated(cider._replace(response=text), cider._replace(response=f"Oh, {text}"), "fr", STOP) is None


@pytest.mark.parametrize(
    "text",
    ["La Pomme Rouge : Une Histoire de Normandie", "I. La pomme\nII. Le cidre et la Normandie", "Salut,\n\nmerci.\n\nJean",
     "- une pomme\n- deux pommes", "Le cidre vient de la vitamine C", "Prix : 5 (cinq)", "Le poids. La masse = m, le volume = v", "« Mangez des pommes. » - Jean Dupont, cuisinier", "りんごは赤い果物", "Elle est rouge. Miam"],
)  # fmt: skip
def test_a_title_a_name_or_a_list_is_whole(text):
    raw = pair(FRENCH, "Décris des pommes et une vitamine contenue.")
    assert truncated(raw, raw._replace(response=text), "fr", STOP) is None


def test_a_list_a_hashtag_or_a_signature_may_end_without_a_full_stop():
    assert refused(FRENCH, "Voici un fruit. Il est rouge. Il est bon. Je l'aime ! #pommes_rouges_de_France") == ""
    assert refused(FRENCH, "Voici trois fruits :\n\n- la pomme rouge de Normandie\n- la poire du jardin") == ""
    assert refused(FRENCH, FRENCH + " Bonne dégustation à toute la famille") == ""


@pytest.mark.parametrize(
    "mark",
    ["<|instruction|>", "<|eot_id|>", "[/INST]", "<s>", "<|im_start|>assistant\n", "### Response:\n", "Response: ",
     "Sure! Here is the improved response:\n", "**Improved instruction:** ", "I have revised the text:\n"],
)  # fmt: skip
def test_template_text_left_over_is_refused(mark):
    assert refused(FRENCH, mark + FRENCH + " Elle est bonne.") == "leftover"
    assert leftover(pair(FRENCH), pair(FRENCH, instruction=mark + "Décris une pomme."), "fr", STOP)
    assert leftover(pair(mark + FRENCH), pair(mark + ENGLISH), "fr", STOP) is None, "the source had it"


@pytest.mark.parametrize(
    ("before", "after"),
    [("REST est un style.", "REST est un style.\n\n## Response\n\nLe serveur répond.\n\n### Response codes\n\n200 : tout va bien."),
     ("5", "Output: 5"), ("Un dialogue.", "User: Bonjour !\nAssistant: Bonjour, que puis-je faire ?"),
     ("Le code.", "Entrez un nombre, et lisez\n\nOutput:")],
)  # fmt: skip
def test_content_that_only_looks_like_a_template_may_stand(before, after):
    assert leftover(pair(before), pair(after), "fr", STOP) is None


def test_an_answer_may_speak_of_an_improvement_that_was_asked_for():
    raw, new = (
        Pair("Rewrite this sentence.", "Me like apple.", text)
        for text in ("I like apples.", f"Here is the revised sentence: {ENGLISH}")
    )
    assert leftover(raw, new, "en", STOP) is None


@pytest.mark.parametrize(
    "piece", ["{name}", "{{user_name}}", "{0}", "%s", "%(count)d", "<placeholder>", "${city}", "[NAME]"]
)
def test_a_lost_placeholder_is_refused_and_a_kept_one_is_not(piece):
    assert refused(f"Bonjour {piece}, voici votre pomme.", "Bonjour à vous, voici votre pomme.") == "lost_placeholder"
    assert refused(f"Bonjour {piece}, voici votre pomme.", f"Bonjour cher {piece}, voici votre pomme.") == ""


@pytest.mark.parametrize("text", [r"$\frac{a}{b}$", "<b>gras</b>", "une remise de 50%", "x^{2}"])
def test_latex_tags_and_percentages_are_no_placeholders(text):
    assert lost_placeholder(pair(f"Voici {text}."), pair("Voici."), "fr", STOP) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [("Position {1} ici.", "Position { 1 } ici."), ("Une List<String> ici.", "Une List <Integer> ici."),
     ("Cher { nom }, ici.", "Cher {nom}, ici."), ("Cher [Nom], ici.", "Cher Paul, ici.")],
)  # fmt: skip
def test_white_space_in_a_placeholder_generics_and_a_filled_blank_are_no_loss(before, after):
    assert lost_placeholder(pair(before), pair(after), "fr", STOP) is None


@pytest.mark.parametrize("piece", ["[Nom]", "[Votre nom]", "[اسمك]"])
def test_a_blank_in_the_prompt_must_stay(piece):
    raw, kept, lost = (
        pair(FRENCH, f"Écris une lettre à {who} {end}") for who, end in ((piece, ""), (piece, "!"), ("toi", ""))
    )
    assert lost_placeholder(raw, lost, "fr", STOP)
    assert lost_placeholder(raw, kept, "fr", STOP) is None


def test_a_blank_input_in_angle_brackets_is_no_placeholder():
    assert lost_placeholder(pair(FRENCH, given="<sans entrée>"), pair(FRENCH), "fr", STOP) is None


def test_a_lost_url_is_refused_wherever_it_stood():
    assert refused("Lisez https://example.org/pommes?id=1.", "Lisez le site.") == "lost_url"
    assert refused("Lisez http://example.org/pommes.", "Lisez donc https://example.org/pommes !") == ""
    before, after = (pair(FRENCH, instruction=f"Résume {text}.") for text in ("www.example.org", "cette page"))
    assert lost_url(before, after, "fr", STOP) == "lost_url: example.org"
    moved = Pair("Résume cette page.", "www.example.org", FRENCH)
    assert lost_url(before, moved, "fr", STOP) is None, "instruction and input are one prompt"


@pytest.mark.parametrize(
    "mark", ["،", "؛", "؟", "।", "！", "？", "；", "：", "»", "”", "…", "。", "’", ")", "]", "**", "です", "를"]
)
def test_what_follows_a_url_is_no_part_of_it(mark):
    url = "https://a.com/path"
    assert refused(f"Lisez {url}{mark}", f"Lisez {url} donc.") == ""
    assert refused(f"Lisez {url}{mark} Oui.", "Lisez https://a.com/other donc.") == "lost_url"


def test_an_escaped_ampersand_is_no_loss():
    assert refused("Lisez https://a.com/?a=1&amp;b=2 ici.", "Lisez https://a.com/?a=1&b=2 là.") == ""
    assert refused("Lisez https://a.com/?a=1&b=2 ici.", "Lisez https://a.com/?a=1&amp;b=2 là.") == ""


def test_lost_code_is_refused():
    assert refused(f"Voici :\n{CODE}", "Voici une fonction qui ajoute un.") == "lost_code"
    assert refused(f"Voici :\n{CODE}", "Voici :\n" + CODE.replace("```python", "").replace("```", "")) == "lost_code"
    assert lost_code(pair(CODE), pair(f"Voici le code :\n{CODE}"), "fr", STOP) is None


def test_a_short_answer_may_grow_a_lot():
    page = "\n".join(f"{FRENCH} Numéro {'abcdefghijklmnopqrstuvwxyz'[i]}." for i in range(20))
    assert absurd_length(pair("Oui"), pair(page), "fr", STOP) is None
    assert absurd_length(pair("Oui"), pair(page * 5), "fr", STOP)
    assert absurd_length(pair(page * 2), pair(page * 6), "fr", STOP) is None, "long, but no many times its source"


def test_a_long_response_may_not_vanish():
    assert absurd_length(pair(FRENCH * 10), pair("Oui"), "fr", STOP)
    assert absurd_length(pair("Oui, bien sûr."), pair("Oui"), "fr", STOP) is None


@pytest.mark.parametrize(
    "tail",
    ["très bon " * 20, "a" * 300, "!" * 300, "リンゴです。" * 20, f"{FRENCH} " * 5, "\n".join(f"{n}. Manger une pomme" for n in range(30))],
)  # fmt: skip
def test_a_loop_is_refused_unless_the_source_had_one(tail):
    assert (loop(pair(FRENCH), pair(f"{FRENCH} {tail}"), "fr", STOP) or "").startswith("loop: response repeats")
    assert loop(pair(FRENCH + tail), pair(f"Et {FRENCH} {tail}"), "fr", STOP) is None


@pytest.mark.parametrize(
    "text", ["Ha ha ha ha !", "Nom : " + "_" * 60, "|---|---|---|---|", ", ".join(map(str, range(200)))]
)
def test_laughter_blanks_rules_and_numbers_are_no_loop(text):
    assert loop(pair(FRENCH), pair(f"{FRENCH}\n{text}"), "fr", STOP) is None


@pytest.mark.parametrize("ask", ["{} {}", "{1}\n{0}", "{} (réponse : « {} »)"])
def test_a_response_in_the_prompt_is_refused(ask):
    task = "Décris une pomme."
    raw, new = pair("Une pomme.", task), pair(FRENCH, ask.format(task, FRENCH))
    assert leak(raw, new, "fr", STOP)
    assert leak(raw, Pair(task, FRENCH, FRENCH), "fr", STOP)


def test_a_response_that_the_raw_prompt_held_is_no_leak():
    raw, new = (Pair(task, FRENCH, FRENCH) for task in ("Corrige la phrase.", "Corrige la phrase suivante."))
    assert leak(raw, new, "fr", STOP) is None


@pytest.mark.parametrize(("before", "after"), [(FRENCH, RUSSIAN), (RUSSIAN, FRENCH), (KOREAN, "Sagwaneun gaeure suhwakhaneun gwairimnida."), (FRENCH, FRENCH + " 苹果是红色的水果，秋天收获，味道很甜，人们都很喜欢。" * 2)])  # fmt: skip
def test_another_script_is_refused(before, after):
    raw = Pair(before, "", before)
    assert script_drift(raw, raw._replace(response=after), None, STOP)


def test_a_name_a_formula_or_an_answer_that_comes_home_is_no_drift():
    russian = Pair("Опиши яблоко.", "", RUSSIAN)
    assert script_drift(russian, russian._replace(response=RUSSIAN + " Python, GitHub, iPhone."), "ru", STOP) is None
    assert script_drift(russian._replace(response="XLII"), russian, "ru", STOP) is None
    assert script_drift(pair(FRENCH), pair(FRENCH + " (π, Σ, λ)"), "fr", STOP) is None


def test_an_english_answer_may_come_home_to_the_script_of_its_declared_language():
    raw = Pair("Describe an apple.", "", ENGLISH)
    assert script_drift(raw, raw._replace(response=RUSSIAN), "ru", STOP) is None
    assert script_drift(Pair("2 + 2 = ?", "", "4"), Pair("2 + 2 = ?", "", KOREAN), "ko", STOP) is None
    for language in ("fr", "ko", None, "tlh"):
        assert script_drift(raw, raw._replace(response=RUSSIAN), language, STOP)


@pytest.mark.parametrize("language", ["fr", None, "tlh"])
def test_another_language_is_refused_and_its_own_is_not(language):
    assert wrong_language(pair(FRENCH), pair(GERMAN), language, STOP).startswith("wrong_language: response reads as de")
    assert wrong_language(pair(FRENCH), pair(FRENCH + " Elle est bonne."), language, STOP) is None


def test_without_a_declared_language_the_whole_raw_pair_speaks_for_it():
    raw = Pair(
        "Listez les noms de quatre plateformes de médias sociaux.", "", "Facebook, Twitter, Instagram, Snapchat."
    )
    new = raw._replace(response=f"Quelques exemples de plateformes de médias sociaux sont : {raw.response}")
    assert wrong_language(raw, new, None, STOP) is None
    assert wrong_language(raw, raw._replace(response=GERMAN), None, STOP)


def test_numbers_at_the_end_are_whole():
    raw = pair("Il coûte 1000 euros.", "Décris 10000 pommes.")
    assert truncated(raw, raw._replace(response="Il y en a à peu près 100"), "fr", STOP) is None


def test_a_title_may_follow_a_sentence():
    text = "Voici un titre pour cette histoire.\n\nLes pommes rouges de la Normandie"
    assert truncated(pair(FRENCH), pair(text), "fr", STOP) is None


def test_the_language_guard_knows_near_twins_and_languages_of_one_script():
    assert wrong_language(pair(INDONESIAN), pair(MALAY), "id", STOP) is None
    assert wrong_language(pair(RUSSIAN), pair(BULGARIAN), "ru", STOP)


def test_an_english_code_or_short_source_is_exempt():
    assert wrong_language(pair(ENGLISH), pair(GERMAN), "fr", STOP) is None
    assert wrong_language(pair("Oui"), pair("Gewiss doch, ja."), "fr", STOP) is None
    code = "SELECT a.id, b.name FROM a JOIN b ON a.id = b.id WHERE b.name IS NOT NULL;"
    assert wrong_language(pair(code), pair(f"{code}\nSELECT count(*) FROM a WHERE a.id > 10;"), "fr", STOP) is None


def test_english_itself_may_not_turn_into_another_language():
    raw = Pair("Describe an apple.", "", ENGLISH)
    assert wrong_language(raw, raw._replace(response=FRENCH), "en", STOP)
    assert wrong_language(raw, raw._replace(response=FRENCH), None, STOP)


def test_the_identifier_is_not_loaded_before_it_is_needed():
    import subprocess

    subprocess.run([sys.executable, "-c", "import sys, midb.guards; assert 'py3langid' not in sys.modules"], check=True)


texts = st.text(max_size=60) | st.lists(
    st.sampled_from(["a", " ", "\n", "`" * 3, "{x}", "<|", "|>", "%s", "ñ", "字", "."]), max_size=40
).map("".join)
pairs = st.builds(Pair, texts, texts, texts)


@settings(max_examples=150, deadline=None)
@given(pairs, pairs, st.sampled_from([None, "fr", "ja", "xx", "", "fil"]), st.sampled_from([STOP, LENGTH]))
def test_any_text_gets_one_printable_line_or_nothing(raw, new, language, completion):
    for guard in DEFAULT_GUARDS:
        reason = guard(raw, new, language, completion)
        assert reason is None or (
            reason.isprintable() and len(reason) <= 100 and reason.split(":")[0] == guard.__name__
        )


@settings(max_examples=50, deadline=None)
@given(pairs, st.sampled_from([None, "fr", "de"]))
def test_a_pair_that_did_not_change_is_never_blamed(raw, language):
    assert check(DEFAULT_GUARDS, raw, raw, language, STOP) is None


@pytest.mark.parametrize("unit", ["a", " ", "\n", "<", "{", "{ ", "`", "# ", "a.", ". ", "\ud800", "http://", "<|a", "%(", "def a(", "aaaaab", "=", "字", "here is ", "if ", "(x", "\t*#", "[A"])  # fmt: skip
def test_hostile_text_of_100_kb_takes_no_long_time(unit):
    hostile = (unit * 100_000)[:100_000]
    start = time.process_time()
    for raw, new in (
        (pair(FRENCH), pair(hostile)),
        (pair(hostile), pair(FRENCH)),
        (pair(hostile), pair(hostile + "x")),
    ):
        for guard in DEFAULT_GUARDS:
            guard(raw, new, "fr", STOP)
            guard(raw._replace(instruction=raw.response), new._replace(instruction=new.response), None, STOP)
    assert time.process_time() - start < 15


# What may be refused of good edits and must be caught of each planted kind; own texts here, the published ones below.
REFUSED, CAUGHT = 0.01, 0.97
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

TOPICS = {
    "fr": ("Décris {} en trois phrases.", "{} plaît à beaucoup de gens. On en parle souvent à la maison. Cela coûte peu et dure longtemps."),
    "de": ("Beschreibe {} in drei Sätzen.", "{} gefällt vielen Menschen. Man spricht zu Hause oft davon. Das kostet wenig und hält lange."),
    "es": ("Describe {} en tres frases.", "{} gusta a mucha gente. Se habla de eso a menudo en casa. Cuesta poco y dura mucho tiempo."),
    "ru": ("Опиши {} в трёх предложениях.", "{} нравится многим людям. Дома об этом часто говорят. Это стоит мало и служит долго."),
    "ja": ("{}を三つの文で説明してください。", "{}は多くの人に好まれています。家でもよく話題になります。値段が安くて長持ちします。"),
}  # fmt: skip
WORDS = ("Anna", "Boris", "Clara", "Dario", "Elena", "Felix", "Greta", "Hugo", "Irina", "Jonas")


def own_edits():
    return {
        code: [
            (Pair(ask.format(word), "", tell.format(word)[:-3]), Pair(ask.format(word), "", tell.format(word)))
            for word in WORDS
        ]
        for code, (ask, tell) in TOPICS.items()
    }


def kinds() -> tuple[str, ...]:
    from guards_accuracy import KINDS

    return KINDS


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "absurd"])  # forty short texts are no absurdity
def test_planted_corruptions_of_own_texts_are_caught(kind):
    from guards_accuracy import caught

    edits = own_edits()
    hits = [hit for code in edits for hit in caught(kind, code, edits, len(WORDS))]
    assert sum(hits) >= CAUGHT * len(hits)


def test_good_edits_of_own_texts_may_stand():
    for code, edits in own_edits().items():
        assert [check(DEFAULT_GUARDS, raw, new, code, STOP) for raw, new in edits] == [None] * len(edits)


def _measure(shared: Path, rows: int) -> None:
    from guards_accuracy import caught, load, translated

    good, mild = load(shared)
    for code, edits in good.items():
        some = random.Random(code).sample(edits, min(rows, len(edits)))
        allowed = REFUSED * len(some) + (2 if len(some) < len(edits) else 0)  # a small sample may be unlucky
        for language in (code, None):
            reasons = [check(DEFAULT_GUARDS, raw, new, language, STOP) for raw, new in some]
            most = allowed if language else 1.5 * allowed  # 1.1 % of the Indonesian where no language is declared
            assert len(some) - reasons.count(None) <= most, (code, language, [r for r in reasons if r])
    whole = translated(good)
    for kind in kinds():
        every = []
        for code in (*good, *(code for code in mild if code not in good)):
            hits = caught(kind, code, whole if code in whole else mild, rows // 10)
            every += hits
            assert rows < 1000 or sum(hits) >= CAUGHT * len(hits), (kind, code)
        assert sum(every) >= CAUGHT * len(every), kind


@pytest.mark.shared
def test_a_sample_of_good_edits_stands_and_what_is_planted_in_it_is_caught(shared):
    _measure(shared, 300)


@pytest.mark.slow
@pytest.mark.shared
def test_good_edits_stand_and_what_is_planted_in_them_is_caught(shared):
    _measure(shared, 2_400)
