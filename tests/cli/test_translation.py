"""fairseq's translation commands with our architecture's name: preprocess → train → resume → generate → score."""

import re

import pytest
import torch
from conftest import LAMBDAS, USER_DIR, generate, hypotheses, train_translation


def load(path):
    return torch.load(path, weights_only=True)


def test_training_resumes_with_bleu_scores_in_the_checkpoint(translation):
    save_dir, first, second = translation
    assert "bleu" in first
    assert re.search(r"Loaded checkpoint .*checkpoint_last\.pt \(epoch 3 @ 12 updates\)", second)
    assert "epoch 003" in second and "epoch 001" not in second
    assert {path.name for path in save_dir.glob("checkpoint*.pt")} >= {"checkpoint_best.pt", "checkpoint_last.pt"}


def test_flags_are_stored_in_the_checkpoint(translation):
    state = load(translation[0] / "checkpoint_last.pt")
    settings = vars(state["cfg"]["model"])
    assert settings["arch"] == "transformer_gpam"
    assert (settings["gpam_lambda"], settings["gpam_lambda_plus"], settings["gpam_lambda_minus"]) == (
        "fixed",
        0.25,
        0.75,
    )
    assert settings["gpam_negative_init"] == "xavier"
    assert any(name.endswith("mechanism.negative_projection.weight") for name in state["model"])


def test_generate_translates_every_sentence_from_another_directory_and_score_reads_it(
    command, parallel, translation, tmp_path
):
    result = generate(command, parallel, translation[0] / "checkpoint_last.pt", "--beam", "5", cwd=tmp_path)
    assert sorted(hypotheses(result.stdout)) == list(range(41))
    assert "BLEU4" in result.stdout
    targets = dict(re.findall(r"^T-(\d+)\t(.*)$", result.stdout, flags=re.M))
    (tmp_path / "sys").write_text("".join(f"{hypotheses(result.stdout)[i]}\n" for i in range(41)))
    (tmp_path / "ref").write_text("".join(f"{targets[str(i)]}\n" for i in range(41)))
    scored = command("fairseq-score", "--sys", tmp_path / "sys", "--ref", tmp_path / "ref", user_dir=False)
    bleu = re.search(r"BLEU4 = ([\d.]+)", result.stdout).group(1)
    assert f"BLEU4 = {bleu}" in scored.stdout


def test_interactive_translates_standard_input(command, parallel, translation):
    result = command(
        "fairseq-interactive",
        *(parallel, "--path", translation[0] / "checkpoint_best.pt", "-s", "a", "-t", "b", "--cpu"),
        stdin="w1 w2 w3\nw4\n",
    )
    assert sorted(hypotheses(result.stdout)) == [0, 1]


def test_validate_gives_the_loss_that_training_gave(command, parallel, translation):
    result = command(
        "fairseq-validate",
        *(parallel, "--path", translation[0] / "checkpoint_last.pt", "--valid-subset", "valid", "--cpu"),
        *("--task", "translation", "--max-tokens", "400", "--required-batch-size-multiple", "1"),
    )
    (training,) = re.findall(r"epoch 003 \| valid on 'valid' subset \| loss ([\d.]+)", translation[2])
    (validation,) = re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", result.text)
    assert validation == training


def test_a_stock_checkpoint_is_fine_tuned_with_batches_of_a_few_lengths(command, parallel, translation, tmp_path):
    """--num-batch-buckets needs numpy < 2; what the stock checkpoint lacks starts at its initial value."""
    state = load(translation[0] / "checkpoint_last.pt")
    state["model"] = {name: value for name, value in state["model"].items() if ".mechanism." not in name}
    state["cfg"]["model"].arch = "transformer"
    torch.save(state, tmp_path / "stock.pt")
    arguments = ["--finetune-from-model", tmp_path / "stock.pt", "--num-batch-buckets", "2", "--max-update", "2"]
    result = train_translation(command, parallel, tmp_path / "tuned", *arguments, *LAMBDAS)
    assert "not in the checkpoint, left at their initial values" in result.text
    tuned = load(tmp_path / "tuned" / "checkpoint_last.pt")
    assert tuned["optimizer_history"][-1]["num_updates"] == 2
    name = "encoder.embed_tokens.weight"
    assert (tuned["model"][name] - state["model"][name]).abs().max() < 0.05


def test_forgetting_user_dir_at_generate_names_the_type_that_is_not_allowed(command, parallel, translation):
    """The README's troubleshooting quotes this message of torch's safe loading."""
    result = generate(command, parallel, translation[0] / "checkpoint_last.pt", user_dir=False, ok=False)
    assert "Unsupported global: GLOBAL argparse.Namespace was not an allowed global by default" in result.stderr


def test_hydra_trains_a_translation_model_that_generate_reads(command, parallel, folder):
    """fairseq has no hydra configuration of `transformer`; `+model._name` names an architecture all the same."""
    sizes = ["encoder_layers=1", "decoder_layers=1", "encoder_embed_dim=16", "decoder_embed_dim=16"]
    sizes += ["encoder_ffn_embed_dim=16", "encoder_attention_heads=2", "decoder_attention_heads=2"]
    save_dir = folder / "hydra_translation"
    command(
        "fairseq-hydra-train",
        *("task=translation", f"task.data={parallel}", "+model._name=transformer_gpam_iwslt_de_en"),
        *(f"+model.{size}" for size in sizes),
        *("+model.gpam_lambda_plus=0.125", "criterion=cross_entropy", "optimizer=adam", "lr_scheduler=fixed"),
        *("optimization.max_update=3", "optimization.lr=[0.01]", "dataset.max_tokens=400", "common.cpu=true"),
        *(f"common.user_dir={USER_DIR}", f"checkpoint.save_dir={save_dir}", "hydra.run.dir=hydra_run"),
        user_dir=False,
    )
    state = load(save_dir / "checkpoint_last.pt")
    assert state["cfg"]["model"]["gpam_lambda_plus"] == 0.125
    assert state["model"]["encoder.layers.0.self_attn.mechanism.lambda_plus.theta"].shape == (2,)
    result = generate(command, parallel, save_dir / "checkpoint_last.pt")
    assert len(hypotheses(result.stdout)) == 41


@pytest.mark.slow
def test_an_ensemble_of_two_checkpoints_translates(command, parallel, translation):
    paths = f"{translation[0] / 'checkpoint1.pt'}:{translation[0] / 'checkpoint3.pt'}"
    result = generate(command, parallel, paths, "--beam", "3")
    assert len(hypotheses(result.stdout)) == 41
