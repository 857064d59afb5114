"""A recipe holds the published numbers, refuses what cannot be meant, and reads LLaMA-Factory's files without surprises."""

import json
import math
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from midb.prompts import PROMPT
from midb.train.recipe import LoraRecipe, find_modules

FIELDS = [each.name for each in fields(LoraRecipe)]
PRESETS = ["midb-readme", "midb-paper-v2", "coachlm"]
CHATGLM = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

# MIDB's README in its keys and numbers, with its three mistakes.
PUBLISHED = {
    "model_name_or_path": "meta-llama/Llama-3.1-8B",
    "trust_remote_code": True,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 64,
    "lora_alpha": 32,
    "loar_target": "query_key_value,dense,dense_h_to_4h,dense_4h_to_h",
    "deepspeed": "examples/deepspeed/ds_z3_config.json",
    "dataset": "MEBD-16Languages",
    "template": "llama3",
    "cutoff_len": 4096,
    "max_samples": 1000,
    "overwrite_cache": True,
    "preprocessing_num_workers": 16,
    "dataloader_num_workers": 4,
    "output_dir": "saves/booster",
    "logging_steps": 10,
    "save_steps": 100,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "save_only_model": False,
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
    "resume_from_checkpoint": None,
}
MENDED = {key: value for key, value in PUBLISHED.items() if key not in ("loar_target", "deepspeed")} | {
    "lora_target": "all",
    "dataset": "midb",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths in a recipe start here


def written(content):
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return "recipe.yaml"


def read(content):
    """What a file means, its warnings aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoraRecipe.from_yaml(written(content))


def faults(content):
    """The lines under the first of the error."""
    with pytest.raises(ValueError, match=r"recipe\.yaml cannot be used as it is") as error:
        read(content)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        (
            "midb-readme",
            {
                "model": "meta-llama/Llama-3.1-8B", "r": 64, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear",
                "k": 720, "max_rows": 1000, "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1,
                "num_train_epochs": 1.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
                "global_batch_size": None, "max_length": 4096, "rendering": "llama3", "dtype": "bfloat16", "prompt": PROMPT,
                "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
                "seed": 42, "gradient_checkpointing": True, "packing": False, "logging_steps": 10, "save_steps": 100,
            },
        ),
        (
            "midb-paper-v2",
            {
                "model": "meta-llama/Llama-3.1-8B-Instruct", "r": 64, "lora_alpha": 32, "target_modules": "all-linear", "k": 0.3,
                "max_rows": None, "learning_rate": 4e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1,
                "num_train_epochs": 3.0, "global_batch_size": 128, "max_length": 4096, "rendering": "llama3",
                "dtype": "bfloat16", "prompt": PROMPT,
            },
        ),
        (
            "coachlm",
            {
                "model": "zai-org/chatglm2-6b", "r": 64, "lora_alpha": 32, "target_modules": CHATGLM, "k": 0.3, "max_rows": None,
                "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "num_train_epochs": 7.0, "global_batch_size": 32,
                "dtype": "float16",
                "prompt": "Improve the following instruction, input and response pair to be more specific, detailed with more "
                "logical steps and grammarly corrected.",
            },
        ),
    ],
)  # fmt: skip
def test_a_preset_has_the_published_numbers(name, numbers):
    recipe = LoraRecipe.preset(name)
    assert {field: getattr(recipe, field) for field in numbers} == numbers


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_runs_code_that_comes_with_a_model(name):
    assert LoraRecipe.preset(name).trust_remote_code is False


def test_an_unknown_preset_says_which_there_are():
    with pytest.raises(ValueError, match="no preset 'midb-v3'; use midb-readme, midb-paper-v2, coachlm"):
        LoraRecipe.preset("midb-v3")


# --- values -----------------------------------------------------------------------------------------------------------

# For each field values that are none of its default.
GOOD = {
    "model": ["meta-llama/Llama-3.2-3B", "./ein Ordner/モデル"],
    "r": [1, 256],
    "lora_alpha": [1, 512],
    "lora_dropout": [0.05, 0.999],
    "target_modules": [("q_proj",), ("self_attn.q_proj", "v_proj"), CHATGLM],
    "k": [1, 2301, 1.0, 0.3, None],
    "statuses": [("unchanged",), ("boosted", "unchanged"), ("boosted", "failed", "not_run", "rejected", "unchanged")],
    "max_rows": [1, 1000],
    "learning_rate": [1e-12, 4e-4, 1.0],
    "lr_scheduler_type": ["linear", "constant_with_warmup", "inverse_sqrt"],
    "warmup_ratio": [0.0, 0.999],
    "num_train_epochs": [0.01, 7.0],
    "max_steps": [1, 270],
    "per_device_train_batch_size": [1, 64],
    "gradient_accumulation_steps": [1, 64],
    "global_batch_size": [4, 128],
    "weight_decay": [0.01, 2.0],
    "adam_beta1": [0.0, 0.5],
    "adam_beta2": [0.0, 0.95],
    "adam_epsilon": [1e-12, 1e-6],
    "max_grad_norm": [0.0, 0.3],
    "seed": [0, 2**32 - 1],
    "max_length": [2, 131072],
    "overlong": ["cut", "refuse"],
    "rendering": ["template", "llama3", "plain"],
    "parity": [True],
    "prompt": ["Améliore ceci :\n1. plus long", "null", "1e-4"],
    "dtype": ["bfloat16", "float16", "float32"],
    "gradient_checkpointing": [False],
    "packing": [True],
    "quantization": ["4bit"],
    "deepspeed": ["ds.json"],
    "logging_steps": [1, 100],
    "save_steps": [1, 100],
    "save_total_limit": [1, None],
    "trust_remote_code": [True],
    "dataset": ["midb", "owner/name", "edits.jsonl"],
    "output_dir": ["a folder/ß", "1e5", "007"],
}
NUMBERS = [name for name, values in GOOD.items() if all(type(value) in (int, float, type(None)) for value in values)]
WHOLE = [name for name in NUMBERS if name != "k" and all(type(value) is not float for value in GOOD[name])]
TEXTS = [name for name, values in GOOD.items() if all(isinstance(value, str) for value in values)]
OPTIONAL = {
    "k",
    "max_rows",
    "global_batch_size",
    "quantization",
    "deepspeed",
    "save_total_limit",
    "dataset",
    "output_dir",
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_survives_json_and_a_file(name):
    defaults = LoraRecipe()
    Path("ds.json").touch()
    Path("edits.jsonl").touch()
    for value in GOOD[name]:
        recipe = LoraRecipe(**{name: value})
        assert recipe != defaults
        again = LoraRecipe(**json.loads(json.dumps(recipe.to_dict())))
        assert again == recipe
        assert type(getattr(again, name)) is type(value)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            content = recipe.to_dict()
            if name == "global_batch_size":
                del content["gradient_accumulation_steps"]
            from_file = LoraRecipe.from_yaml(written(content))
        assert from_file == recipe
        assert type(getattr(from_file, name)) is type(value)


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(GOOD[name]) for name in FIELDS if name != "global_batch_size"}
    )
)
def test_any_recipe_survives_json(values):
    recipe = LoraRecipe(**values)
    assert {name: getattr(recipe, name) for name in values} == values
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    assert LoraRecipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert hash(LoraRecipe(**recipe.to_dict())) == hash(recipe)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value", [object(), [], {}, {"a": 1}, b"x", (), "", " ", math.nan, [[]]], ids=lambda value: type(value).__name__
)
def test_what_is_no_value_of_a_field_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: .* cannot be used; give "):
        LoraRecipe(**{name: value})


@pytest.mark.parametrize("name", sorted(set(FIELDS) - OPTIONAL))
def test_none_is_refused_where_it_means_nothing(name):
    with pytest.raises(ValueError, match=f"^{name}: None cannot be used"):
        LoraRecipe(**{name: None})


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_none_is_taken_where_it_means_something(name):
    assert getattr(LoraRecipe(**{name: None}), name) is None


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, False, "1", "1e-4", -2, -math.inf, math.inf, 1j], ids=repr)
def test_numbers_are_numbers_and_within_bounds(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        LoraRecipe(**{name: value})


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - set(WHOLE) - {"k"}))
def test_a_number_too_large_for_a_float_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: 1000"):
        LoraRecipe(**{name: 10**400})


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.0, 0.5, 2.5])
def test_whole_numbers_are_whole(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: {value} cannot be used; give a whole number"):
        LoraRecipe(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 0), ("lora_alpha", 0), ("lora_dropout", 1), ("k", 0), ("k", 0.0), ("k", 1.01), ("k", 720.0), ("max_rows", 0),
        ("learning_rate", 0), ("lr_scheduler_type", "cosinus"), ("lr_scheduler_type", "cosine_with_min_lr"),
        ("warmup_ratio", 1.0), ("num_train_epochs", 0), ("max_steps", 0), ("per_device_train_batch_size", 0),
        ("global_batch_size", 0), ("adam_beta1", 1), ("adam_beta2", 1.0), ("adam_epsilon", 0), ("seed", 2**32),
        ("max_length", 1), ("overlong", "drop"), ("rendering", "chatml"), ("parity", 1), ("dtype", "bf16"),
        ("quantization", "8bit"), ("save_steps", 0), ("save_total_limit", 0), ("trust_remote_code", "yes"),
        ("target_modules", "q_proj|v_proj"), ("target_modules", ".*_proj"), ("target_modules", ["q_proj", "all"]),
        ("target_modules", "all-linear,q_proj"), ("target_modules", ["q_proj", 3]), ("target_modules", "q_proj,"),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        LoraRecipe(**{name: value})


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"^r: 0 ") as error:
        LoraRecipe(r=0, learning_rate="fast", seed=-1)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["r", "seed", "learning_rate"]


def test_a_step_holds_whole_batches():
    with pytest.raises(ValueError, match="global_batch_size: 30 is no multiple of per_device_train_batch_size, 4"):
        LoraRecipe(global_batch_size=30)
    assert LoraRecipe(global_batch_size=30, per_device_train_batch_size=5).global_batch_size == 30


def test_a_changed_recipe_is_checked_too():
    assert replace(LoraRecipe.preset("coachlm"), r=8).prompt == LoraRecipe.preset("coachlm").prompt
    with pytest.raises(ValueError, match=r"^r: -8 "):
        replace(LoraRecipe(), r=-8)


def test_values_have_one_form():
    assert LoraRecipe(target_modules="all").target_modules == "all-linear"
    assert LoraRecipe(target_modules=" q_proj, v_proj ").target_modules == ("q_proj", "v_proj")
    assert LoraRecipe(target_modules=["q_proj", "v_proj"]) == LoraRecipe(target_modules="q_proj,v_proj")
    assert LoraRecipe(model=Path("a/b"), output_dir=Path("c")).to_dict()["model"] == str(Path("a/b"))
    assert type(LoraRecipe(num_train_epochs=3).num_train_epochs) is float
    assert (type(LoraRecipe(k=1).k), type(LoraRecipe(k=1.0).k)) == (int, float)


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_published_file_is_refused_for_all_its_mistakes_at_once():
    target, dataset, deepspeed = faults(PUBLISHED)
    assert target.startswith("loar_target is no setting that midb knows; did you mean lora_target?")
    assert "lora_target: all" in target
    assert dataset.startswith("dataset: MEBD-16Languages was never published")
    assert "machine translations" in dataset
    assert "dataset: midb" in dataset
    assert "`midb data`" in dataset
    assert "no file examples/deepspeed/ds_z3_config.json here" in deepspeed


def test_the_published_names_of_modules_are_refused_for_a_llama():
    recipe = read(MENDED | {"lora_target": PUBLISHED["loar_target"]})
    assert recipe.target_modules == CHATGLM
    with pytest.raises(
        ValueError, match=r"no modules named query_key_value, dense.* it has .*q_proj.* lora_target: all"
    ):
        find_modules(recipe.target_modules, LLAMA)


def test_the_published_file_mended_is_the_preset():
    preset = replace(
        LoraRecipe.preset("midb-readme"), dataset="midb", output_dir="saves/booster", trust_remote_code=True
    )
    assert read(MENDED) == preset


def test_a_deepspeed_file_that_is_there_is_taken():
    Path("ds.json").touch()
    assert read({"deepspeed": "ds.json"}).deepspeed == "ds.json"


def test_keys_without_effect_are_named_in_one_warning_with_the_reason():
    with pytest.warns(UserWarning, match=r"^recipe\.yaml: no effect here: ") as said:
        LoraRecipe.from_yaml(written(MENDED | {"hf_hub_token": "hf_secret", "k": 720}))
    assert [each.filename for each in said] == [__file__]
    text = str(said[0].message)
    for key in (
        "overwrite_cache", "preprocessing_num_workers", "dataloader_num_workers", "plot_loss", "overwrite_output_dir",
        "save_only_model", "report_to", "ddp_timeout", "hf_hub_token",
    ):  # fmt: skip
        assert key in text
    for key in ("stage", "do_train", "template", "bf16", "resume_from_checkpoint", "k=720", "left out"):
        assert key not in text
    assert "(rows are prepared in memory)" in text
    assert "hf_secret" not in text


def test_defaults_that_are_not_llama_factorys_are_said():
    with pytest.warns(UserWarning, match=r"left out, and set otherwise than by LLaMA-Factory: ") as said:
        LoraRecipe.from_yaml(written({"stage": "sft", "learning_rate": 1e-4, "lora_rank": 8}))
    listed = str(said[0].message).rpartition(": ")[2].split(", ")
    assert {"k=720", "lora_alpha=32", "max_length=4096", "warmup_ratio=0.1"} <= set(listed)
    assert not {each for each in listed if each.startswith(("r=", "learning_rate="))}


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("model_name_or_path: a/b", "model", "a/b"),
        ("lora_rank: 8", "r", 8),
        ("lora_target: all", "target_modules", "all-linear"),
        ("lora_target: q_proj, v_proj", "target_modules", ("q_proj", "v_proj")),
        ("lora_target: [q_proj, v_proj]", "target_modules", ("q_proj", "v_proj")),
        ("cutoff_len: 1024", "max_length", 1024),
        ("max_samples: 5", "max_rows", 5),
        ("template: llama3", "rendering", "llama3"),
        ("bf16: true", "dtype", "bfloat16"),
        ("fp16: true", "dtype", "float16"),
        ("bf16: false", "dtype", "auto"),
        ("pure_bf16: false", "dtype", "auto"),
        ("quantization_bit: 4", "quantization", "4bit"),
        ("quantization_bit: null", "quantization", None),
        ("disable_gradient_checkpointing: true", "gradient_checkpointing", False),
        ("disable_gradient_checkpointing: false", "gradient_checkpointing", True),
        ("gradient_checkpointing: false", "gradient_checkpointing", False),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: 2E-4", "learning_rate", 2e-4),
        ("learning_rate: .5e-4", "learning_rate", 0.5e-4),
        ("adam_epsilon: 1e-6", "adam_epsilon", 1e-6),
        ("k: 3e-1", "k", 0.3),
        ("num_train_epochs: 3", "num_train_epochs", 3.0),
        ("output_dir: 1e5", "output_dir", "1e5"),
        ("k: null", "k", None),
        ("k: 1", "k", 1),
        ("packing: true", "packing", True),
        ("max_steps: 20", "max_steps", 20),
        ("seed: 7", "seed", 7),
        ("prompt: Améliore", "prompt", "Améliore"),
    ],
)
def test_a_line_means_what_llama_factory_means(line, field, value):
    recipe = read(line)
    assert getattr(recipe, field) == value
    assert type(getattr(recipe, field)) is type(value)
    assert recipe == replace(LoraRecipe(), **{field: value})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stage: dpo", "write stage: sft"),
        ("do_train: false", "do_train: true"),
        ("finetuning_type: full", "finetuning_type: lora"),
        ("template: default", "rendering: template"),
        ("template: qwen", "rendering: template"),
        ("train_on_prompt: true", "the answer only"),
        ("additional_target: embed_tokens,lm_head", "remove the line"),
        ("use_rslora: true", "remove the line"),
        ("use_dora: true", "remove the line"),
        ("adapter_name_or_path: saves/old", "remove the line"),
        ("pure_bf16: true", "bf16: true"),
        ("bf16: 'true'", "write true or false"),
        ("quantization_bit: 8", "write 4"),
        ("double_quantization: false", "always on"),
        ("neat_packing: true", "packing: true"),
        ("warmup_steps: 20", "warmup_ratio"),
        ("optim: adamw_8bit", "AdamW"),
        ("val_size: 0.1", "eval_edits"),
        ("resume_from_checkpoint: saves/checkpoint-100", "goes on by itself"),
        ("save_strategy: epoch", "save_steps"),
        ("mix_strategy: interleave_under", "one dataset"),
        ("model_revision: abc", "its folder"),
        ("loraplus_lr_ratio: 16.0", "remove the line"),
    ],
)
def test_what_would_mean_something_else_is_refused_with_the_way_out(line, words):
    (fault,) = faults(line)
    assert fault.startswith(line.split(":")[0] + ": ")
    assert words in fault


@pytest.mark.parametrize(
    "key", ["use_dora", "template", "stage", "bf16", "additional_target", "resume_from_checkpoint", "val_size"]
)
def test_null_is_not_set(key):
    assert read(f"{key}: null") == LoraRecipe()


def test_what_holds_anyway_may_be_written():
    lines = "stage: sft\ndo_train: true\nfinetuning_type: lora\nuse_dora: false\ndouble_quantization: true\nval_size: 0.0\noptim: adamw_torch"
    assert read(lines) == LoraRecipe()


@pytest.mark.parametrize(
    "lines",
    [
        "bf16: true\nfp16: true",
        "bf16: true\ndtype: bfloat16",
        "lora_rank: 8\nr: 8",
        "lora_target: all\ntarget_modules: all-linear",
        "gradient_checkpointing: true\ndisable_gradient_checkpointing: false",
    ],
)
def test_two_names_for_one_thing_are_refused(lines):
    (fault,) = faults(lines)
    first, second = (line.split(":")[0] for line in lines.splitlines())
    assert fault.startswith(f"{second} and {first} both set ")


def test_a_batch_is_given_once():
    assert faults("global_batch_size: 128\ngradient_accumulation_steps: 2") == [
        "gradient_accumulation_steps follows from global_batch_size; keep one of them"
    ]


def test_a_wrong_value_is_told_under_the_name_it_was_given():
    assert [fault.split(" ")[0] for fault in faults("lora_rank: 0\ncutoff_len: many\nlora_dropout: 1.5")] == [
        "lora_rank:", "cutoff_len:", "lora_dropout:",
    ]  # fmt: skip


def test_faults_of_every_kind_are_told_in_one_error():
    content = "stage: rm\nlora_rang: 8\nlora_rank: -1\nbf16: true\nfp16: true\ndataset: alpaca\nseed: 1\nseed: 2\n"
    said = "\n".join(faults(content))
    assert len(said.splitlines()) == 6
    for words in (
        "stage: 'rm'",
        "lora_rang is no",
        "lora_rank: -1",
        "fp16 and bf16",
        "no alpaca here",
        "seed is there twice",
    ):
        assert words in said


KEYS = [
    key
    for key in [*PUBLISHED, *FIELDS, "lora_target", "disable_gradient_checkpointing"]
    if len(key) > 5 and key != "loar_target"
]


@given(key=st.sampled_from(KEYS), data=st.data())
def test_a_misspelt_key_is_told_with_the_right_one(key, data):
    at = data.draw(st.sampled_from([i for i in range(len(key) - 1) if key[i] != key[i + 1]]))
    typo = data.draw(
        st.sampled_from(
            [key[:at] + key[at + 1] + key[at] + key[at + 2 :], key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:]]
        ),
        label="swapped, lost or doubled",
    )
    if key.startswith("adam_beta") or typo in KEYS:  # the two betas are as near to most typos of either
        return
    (fault,) = faults({typo: 1})
    assert fault.startswith(f"{typo} is no setting that midb knows; did you mean {key}?")


@pytest.mark.parametrize("typo", ["LORA_RANK", "lora-rank", "Lora_Rank"])
def test_another_spelling_of_a_key_is_told_with_the_right_one(typo):
    assert "did you mean lora_rank?" in faults({typo: 8})[0]


def test_a_key_of_nothing_is_told_without_a_guess():
    assert faults({"zzz_qqq": 1, 7: 2}) == [
        "zzz_qqq is no setting that midb knows; remove the line",
        "7 is no setting that midb knows; remove the line",
    ]


@pytest.mark.parametrize(
    "name", ["midb", "owner/name", "hf://datasets/owner/na-me_1.0", "edits.jsonl", "folder", "folder/edits.csv"]
)
def test_a_dataset_is_a_place(name):
    Path("folder").mkdir()
    Path("folder/edits.csv").touch()
    Path("edits.jsonl").touch()
    assert read({"dataset": name}).dataset == name


@pytest.mark.parametrize(
    "name", ["alpaca", "identity,alpaca_en_demo", "data/edits.jsonl", "./owner/name", "/no/such", "a/b/c", "midb2"]
)
def test_a_dataset_that_is_nowhere_is_refused(name):
    (fault,) = faults({"dataset": name})
    assert fault.startswith(
        f"dataset: there is no {name} here; give one file, folder or Hub dataset (owner/name), e.g. dataset: midb"
    )


@pytest.mark.parametrize("folder", ["data", "elsewhere"])
def test_a_dataset_that_llama_factory_knows_is_told_with_its_file(folder):
    Path(folder).mkdir()
    info = {
        "mine": {"file_name": "mine.json"},
        "hub": {"hf_hub_url": "owner/name"},
        "odd": {"script_url": "x"},
        "worse": 3,
    }
    Path(folder, "dataset_info.json").write_text(json.dumps(info))
    more = {} if folder == "data" else {"dataset_dir": folder}
    assert faults({"dataset": "mine", **more})[0].endswith(f"e.g. dataset: {Path(folder, 'mine.json')}")
    assert faults({"dataset": "hub", **more})[0].endswith("e.g. dataset: owner/name")
    for name in ("odd", "worse", "none"):
        assert faults({"dataset": name, **more})[0].endswith("e.g. dataset: midb (the published edits)")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just words\n", "42\n", "{}\n", "null\n"])
def test_a_file_without_settings_is_refused(text):
    with pytest.raises(
        ValueError, match=r"^recipe\.yaml holds .* instead of settings; write lines such as learning_rate"
    ):
        LoraRecipe.from_yaml(written(text))


@pytest.mark.parametrize(
    "text",
    ["a: [1\n", "a: b: c\n", "\tr: 8\n", "r: 1\n--- \nr: 2\n", "r: !!python/object/apply:os.getcwd []\n", "seed: 2024-13-41\n", "r: *x\n", "? [a]\n: 1\n"],
)  # fmt: skip
def test_a_file_that_is_no_plain_yaml_is_refused(text):
    with pytest.raises(ValueError, match=r"^recipe\.yaml is not YAML \((.|\n)*\); mend that place$"):
        LoraRecipe.from_yaml(written(text))


def test_a_file_in_another_encoding_is_refused():
    Path("recipe.yaml").write_bytes("prompt: Améliore\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^recipe\.yaml is not UTF-8 .*; convert it first"):
        LoraRecipe.from_yaml("recipe.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    Path("recipe.yaml").write_bytes("r: 8\n".encode("utf-8-sig"))
    assert LoraRecipe.from_yaml(Path("recipe.yaml")).r == 8


@pytest.mark.parametrize("path", ["missing.yaml", "."])
def test_a_file_that_is_not_there_is_told(path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; give the path of a recipe"):
        LoraRecipe.from_yaml(path)


# --- modules ----------------------------------------------------------------------------------------------------------

LLAMA = [
    f"model.layers.{layer}.{name}"
    for layer in range(2)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.experts.0")
] + ["lm_head"]  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "found"),
    [
        ("all-linear", LLAMA),
        (("q_proj",), [name for name in LLAMA if name.endswith(".q_proj")]),
        (("up_proj", "q_proj"), [name for name in LLAMA if name.endswith((".q_proj", ".up_proj"))]),
        (["self_attn.q_proj"], [name for name in LLAMA if name.endswith(".q_proj")]),
        (("lm_head",), ["lm_head"]),
        (("model.layers.0.self_attn.q_proj",), ["model.layers.0.self_attn.q_proj"]),
    ],
    ids=repr,
)
def test_modules_that_are_there_are_taken_in_the_models_order(modules, found):
    assert found
    assert find_modules(modules, iter(LLAMA)) == tuple(found)


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        (("q_proj", "dense"), "dense"),  # PEFT would train q_proj alone and say nothing
        (("proj",), "proj"),
        (("q_pro",), "q_pro"),
        (("attn.q_proj",), "attn.q_proj"),
        (("query_key_value", "up_proj", "dense"), "query_key_value, dense"),
    ],
)
def test_a_module_that_is_not_there_is_told_with_those_that_are(modules, missing):
    with pytest.raises(ValueError, match=r"^the model has no modules named ") as error:
        find_modules(modules, LLAMA)
    assert f"named {missing}; it has k_proj, lm_head, q_proj, up_proj. " in str(error.value)
    assert "target_modules: all-linear" in str(error.value)
