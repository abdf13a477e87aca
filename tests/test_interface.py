"""The Python interface on untrained models: what it refuses, threads, ensembles, folders of dictionaries."""

import argparse
import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from quick import EXAMPLES
from tiny import BASE, OURS, STOCK, build, dictionary

from fairseq_gpam import errors
from fairseq_gpam.export import export
from fairseq_gpam.hub import from_pretrained
from fairseq_gpam.lab.recipes.averaging import average

SENTENCES = [f"w{n} w{n * 7 % 20} w{n * 3 % 20}" + " w5" * (n % 4) for n in range(4)]
MECHANISM = ["--gpam-mechanism", "dagpam", "--gpam-decoder-mechanism", "value_residual"]
LANGUAGE_MODEL = ["--gpam-mechanism", "value_residual"]


def checkpoint(folder, task, data, *flags, seed=1, words=(20, 20)):
    """A checkpoint as fairseq-train writes it, of a model that was not trained, and the dictionaries beside it."""
    data.mkdir(exist_ok=True)
    names = ("dict.b.txt", "dict.a.txt") if task.startswith("translation") else ("dict.txt",)
    for name, count in zip(names, words, strict=False):
        dictionary(count).save(str(data / name))
    parser = fairseq_options.get_training_parser(task)
    given = [str(data), "--task", task, "--arch", *flags]
    cfg = convert_namespace_to_omegaconf(fairseq_options.parse_args_and_arch(parser, given))
    languages = {"source_lang": "b", "target_lang": "a"} if task == "translation" else {}
    with_languages = OmegaConf.create({**cfg.task, **languages}) if languages else cfg.task
    made = tasks.setup_task(with_languages)
    torch.manual_seed(seed)
    model = made.build_model(cfg.model)
    history = [{"num_updates": 1, "optimizer_name": "Adam", "lr_scheduler_state": {}, "criterion_name": "X"}]
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg),
        "model": model.state_dict(),
        "optimizer_history": history,
    }
    path = folder / f"{task}-{seed}.pt"
    torch.save({**state, "extra_state": {"train_iterator": {"epoch": 1}}, "task_state": {}}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def translation(folder):
    flags = [OURS["translation"], *BASE["translation"], *MECHANISM]
    return [checkpoint(folder, "translation", folder / "data", *flags, seed=seed, words=(20, 24)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def translator(folder, translation):
    return from_pretrained(translation[0], folder / "data")


@pytest.fixture(scope="module")
def language_model(folder):
    flags = [OURS["language_modeling"], *BASE["language_modeling"], *LANGUAGE_MODEL, "--tokens-per-sample", "64"]
    return from_pretrained(checkpoint(folder, "language_modeling", folder / "lm", *flags), folder / "lm")


def functions(translator, language_model, sentence):
    """What every public function returns for a sentence."""
    attention = translator.attention(sentence)
    return (
        translator.translate(sentence, max_len_b=6),
        translator.score([sentence], ["w1 w2"]),
        {key: weights.tolist() for key, weights in attention.weights.items()},
        translator.generate([translator.encode(sentence)], max_len_b=4)[0][0]["tokens"].tolist(),
        language_model.complete(sentence, max_len_b=9),
        language_model.score([sentence, "w3"]),
        {key: weights.tolist() for key, weights in language_model.attention(sentence).weights.items()},
    )


def test_eight_threads_get_what_one_gets(folder, translation, translator, language_model):
    def call(sentence):
        return functions(translator, language_model, sentence)

    expected = list(map(call, SENTENCES))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(call, 2 * SENTENCES)) == 2 * expected
        loaded = threads.map(lambda _: from_pretrained(translation[0], folder / "data"), range(8))
        assert all(hub.score(SENTENCES[:1], ["w1 w2"]) == expected[0][1] for hub in loaded)


def test_a_text_gives_a_text_and_a_list_a_list(translator, language_model):
    for ask in (translator.translate, lambda texts: language_model.complete(texts, max_len_b=5)):
        assert isinstance(ask(""), str) and isinstance(ask("w1"), str)
        assert ask([]) == [] and ask([""]) == [ask("")]
    assert translator.score([], []) == [] and language_model.score([]) == []
    assert len(translator.score([""], [""])[0].tokens) == len(language_model.score([""])[0].tokens) == 1


@pytest.mark.parametrize("length", [1, 25])
def test_a_prompt_of_any_length_is_continued(language_model, length):
    prompt = " ".join(["w1", "w2"] * length)
    completed = language_model.complete(prompt, max_len_b=5, min_len=2 * length + 4).split()
    assert completed[: 2 * length] == prompt.split()
    assert 2 * length + 4 <= len(completed) <= 2 * length + 5


def test_settings_and_values_that_do_not_exist_are_refused(translator, language_model):
    made = random.Random(1)
    names = ["lenpne", "Lenpen", "beam_size", "max_len", "x", "lm_path", "nbest", "retain_dropout", "score_reference"]
    for _ in range(EXAMPLES):
        wrong = made.choice(
            [
                {made.choice(names): made.choice([1, 0.5, "a", None])},
                {made.choice(["lenpen", "max_len_b", "temperature"]): made.choice(["a", [1], {}, object()])},
                {"beam": made.choice([0, -1, 1.5, "5", None, True])},
            ]
        )
        for ask in (translator.translate, language_model.complete):
            with pytest.raises(ValueError, match="is not allowed"):
                ask("w1", **wrong)
    for ask in (
        lambda: translator.score("w1", "w2"),
        lambda: language_model.score("w1"),
        lambda: translator.score([1], [2]),
    ):
        with pytest.raises(ValueError, match="allowed: a list of texts"):
            ask()
    for size in (0, -3):
        with pytest.raises(ValueError, match="batch_size"):
            language_model.score(["w1"], batch_size=size)
    long = " ".join(["w1"] * 3000)
    for ask in (translator.translate, translator.attention, language_model.complete, language_model.attention):
        with pytest.raises(ValueError, match="tokens; allowed by the model"):
            ask(long)
    with pytest.raises(ValueError, match="not allowed together"):
        translator.translate("w1", min_len=10, max_len_b=1)


def test_an_ensemble_votes_as_in_fairseq(folder, translation, translator):
    both = from_pretrained(":".join(map(str, translation)), f"{folder}/data:{folder}/data")
    single = [from_pretrained(path, folder / "data") for path in translation]
    each = [hub.score(["w1 w2"], ["w3"])[0].log_probabilities for hub in single]
    mean = (torch.tensor(each, dtype=torch.float64).exp().mean(0)).log()
    assert both.score(["w1 w2"], ["w3"])[0].log_probabilities == pytest.approx(mean.tolist(), abs=1e-5)
    assert isinstance(both.translate("w1"), str)
    with pytest.raises(ValueError, match="ensemble of 2 models"):
        both.attention("w1")


def test_the_dictionaries_alone_suffice(folder, translation, translator, tmp_path):
    """The languages are told apart by the sizes of the embeddings, or are given."""
    assert (translator.task.cfg.source_lang, translator.task.cfg.target_lang) == ("b", "a")
    given = from_pretrained(translation[0], folder / "data", source_lang="b", target_lang="a")
    assert given.score(["w1"], ["w2"]) == translator.score(["w1"], ["w2"])
    for name in ("dict.a.txt", "dict.b.txt"):
        shutil.copy(folder / "data" / "dict.b.txt", tmp_path / name)
    with pytest.raises(ValueError, match="give source_lang and target_lang"):
        from_pretrained(translation[0], tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source": "a"}, "source is not allowed; allowed: gpam_import, source_lang, target_lang"),
        ({"data": __file__}, "not a folder"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"checkpoint": "."}, "a folder, not a checkpoint"),
        ({"gpam_import": "nowhere.py"}, "no such Python file"),
        ({"checkpoint": "missing.pt"}, r"missing\.pt does not exist"),
        ({"tokenizer": "nltk"}, "tokenizer='nltk' is not allowed; allowed: 'moses', None"),
        ({"sentencepiece": __file__, "subword_nmt": __file__}, "not allowed together"),
    ],
)
def test_wrong_arguments_are_sentences(folder, translation, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=message):
        from_pretrained(**{"checkpoint": translation[0], "data": folder / "data", **arguments})


def put_anywhere(made, node, value):
    """Puts a value in the place of a field of a checkpoint, at any depth; returns the field's name."""
    while True:
        node = vars(node) if isinstance(node, argparse.Namespace) else node
        key = made.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
        if not (isinstance(node[key], (dict, list, argparse.Namespace)) and node[key]) or made.random() < 0.3:
            node[key] = value
            return key
        node = node[key]


WRONG = [None, "x", "", [], {}, [[1]], (1,), True, -1, 10**30, float("nan"), b"x", "${x}", argparse.Namespace(x=1)]


@pytest.mark.slow
def test_a_field_of_a_checkpoint_of_another_type_is_a_sentence_or_does_not_matter(folder, translation, tmp_path):
    made, path = random.Random(1), tmp_path / "made.pt"
    flags = [OURS["language_modeling"], *BASE["language_modeling"]]
    modelling = checkpoint(tmp_path, "language_modeling", tmp_path / "lm", *flags)
    for _ in range(200):
        origin, data = made.choice([(translation[0], folder / "data"), (modelling, tmp_path / "lm")])
        state = torch.load(origin, weights_only=True)
        wrong = made.choice(WRONG)
        key = put_anywhere(made, state, wrong)
        torch.save(state, path)
        for use in (
            lambda data=data: from_pretrained(path, data),
            lambda: export(path, tmp_path / "out.pt"),
            lambda: average([path, path]),
        ):
            try:
                use()
            except Exception as error:
                assert errors.describe(error) is not None, (key, wrong, error)


@pytest.mark.parametrize("content", [b"", b"x\n", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["sentencepiece", "subword_nmt", "dict.a.txt"])
def test_a_damaged_file_of_words_is_named(folder, translation, tmp_path, name, content):
    shutil.copytree(folder / "data", tmp_path / "data")
    path = tmp_path / "data" / name
    path.write_bytes(content)
    given = {} if name == "dict.a.txt" else {name: path}
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refusal:
        from_pretrained(translation[0], tmp_path / "data", source_lang="b", target_lang="a", **given)
    assert str(path if given else translation[0]) in str(refusal.value)


def test_another_mechanism_is_announced_with_both_names(translation, folder, caplog):
    languages = {"source_lang": "b", "target_lang": "a"}
    overrides = {"data": str(folder / "data"), **languages}
    checkpoint_utils.load_model_ensemble_and_task([str(translation[0])], overrides)
    assert "trained with" not in caplog.text
    state = checkpoint_utils.load_checkpoint_to_cpu(str(translation[0]))
    model = build("translation", OURS["translation"], "--gpam-mechanism", "softmax")
    with pytest.raises(RuntimeError):
        model.load_state_dict(state["model"])
    assert "--gpam-encoder-mechanism 'dagpam', this model has 'softmax'" in caplog.text


def test_flags_with_which_the_same_weights_mean_something_else_are_announced(translation, caplog):
    def load(*flags):
        caplog.clear()
        state = checkpoint_utils.load_checkpoint_to_cpu(str(translation[0]))
        model = build("translation", OURS["translation"], *MECHANISM, *flags)
        model.upgrade_state_dict(state["model"])
        return caplog.text

    # The padding of the tiny model differs, not what it is made of.
    assert "trained with" not in load("--gpam-backend", "reference", "--gpam-log-attention", "3")
    for flags, expected in (
        (("--gpam-lambda-max", "0.9"), "--gpam-lambda-max None (here 0.9)"),
        (("--gpam-lambda-tied",), "--gpam-lambda-tied False (here True)"),
        (("--gpam-skip-weight", "2"), "--gpam-skip-weight None (here 2.0)"),
    ):
        assert expected in load(*flags)


def test_an_override_of_the_mechanism_is_announced(translation, folder, caplog):
    overrides = {"data": str(folder / "data"), "source_lang": "b", "target_lang": "a", "gpam_mechanism": "softmax"}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        checkpoint_utils.load_model_ensemble_and_task([str(translation[0])], overrides)
    assert "'dagpam', this model has 'softmax'" in caplog.text


def test_a_task_that_adds_tokens_is_not_scored(folder, tmp_path):
    for name in ("dict.a.txt", "dict.b.txt"):
        dictionary(20).save(str(tmp_path / name))
    flags = [OURS["translation"], *BASE["translation"], "--lang-pairs", "a-b", "--langs", "a,b"]
    flags += ["--encoder-langtok", "tgt", "--decoder-langtok", "--source-dict", str(tmp_path / "dict.a.txt")]
    flags += ["--target-dict", str(tmp_path / "dict.b.txt"), "--source-lang", "a", "--target-lang", "b"]
    path = checkpoint(tmp_path, "translation_multi_simple_epoch", tmp_path / "data", *flags)
    hub = from_pretrained(path, tmp_path / "data")
    for ask in (lambda: hub.score(["w1"], ["w2"]), lambda: hub.attention("w1")):
        with pytest.raises(ValueError, match="TranslationMultiSimpleEpochTask, which adds to the tokens"):
            ask()


@pytest.mark.parametrize("flags", [[], ["--no-cross-attention", "--cross-self-attention"]])
def test_every_row_and_column_of_attention_has_its_token(folder, tmp_path, flags):
    path = checkpoint(tmp_path, "translation", folder / "data", OURS["translation"], *BASE["translation"], *flags)
    attention = from_pretrained(path, folder / "data", source_lang="b", target_lang="a").attention("w1 w2 w3", "w4 w5")
    assert {site for site, _ in attention.weights} == {"encoder", "decoder"} | ({"cross"} if not flags else set())
    for (site, _), weights in attention.weights.items():
        assert weights.shape[1:] == (len(attention.queries(site)), len(attention.keys(site)))
    own = attention.source if flags else []
    assert attention.keys("decoder") == [*own, *attention.target]
    assert attention.target == ["</s>", *attention.predicted[:-1]] and attention.source[-1] == "</s>"


@pytest.mark.slow
def test_a_stock_checkpoint_is_answered_with_both_ways_to_load_it_whenever_it_is_loaded(caplog):
    caplog.set_level("INFO")
    stock = build("translation", STOCK["translation"]).state_dict()
    model = build("translation", OURS["translation"], "--gpam-mechanism", "dagpam")
    for _ in range(2):
        caplog.clear()
        model.load_state_dict(dict(stock))
        assert "--restore-file and --reset-optimizer, or with --finetune-from-model" in caplog.text
    caplog.clear()
    model.load_state_dict(model.state_dict())
    assert "--restore-file" not in caplog.text
