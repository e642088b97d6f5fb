"""Models that are handed on: what is written and read again, what a card says, what is refused. The Hub is a folder."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import errors
from PIL import Image
from tiny import TINY, P, changed, picture

from ovseg import Segmenter, cli
from ovseg.segmentation import hub
from ovseg.study import publish
from ovseg.training.decoder import Decoder
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["cat", "sofa", "tall tree"]
RESULT = {
    "run": "mgca",
    "miou": {"things": {"pixel": 20.0}, "scenes": {"pixel": 41.5}},
    "thresholds": {"things": 0.45},
    "classes": [["things", "a4" * 32], ["scenes", "b7" * 32]],
    "versions": [["python", "3.11.9"], ["torch", "2.15.0"]],
    "weights": 74114,
    "parameters": [
        ["clip.model", "local-dir:models/clip"],
        ["clip.pretrained", None],
        ["mgca.k", 0.06],
        ["tcl.tau", 0.07],
        ["train.method", "mgca"],
        ["segment.unit", "pixel"],
        ["segment.templates", ["a {}."]],
    ],
    "seeds": [{"miou": {"things": {"pixel": things}, "scenes": {"pixel": scenes}}} for things, scenes in ((10.0, 41.0), (30.0, 42.0))],
}


@pytest.fixture
def project(clip, decoder, tmp_path, monkeypatch):
    """A project with models/mgca at two seeds, models/clip and the result; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    pretraining.save_clip(clip.clip, TINY, "models/clip")
    own = {"model": "local-dir:models/clip", "pretrained": None}
    Segmenter(clip, decoder, changed()).save_settings("models/mgca", P.clip.model_copy(update=own))
    decoder.save("models/mgca/seeds/0")
    Decoder(clip.width).save("models/mgca/seeds/1")
    Path("models/mgca/seeds/0/history.csv").write_text("step\n")
    said(RESULT)
    Path("results/prepare.json").write_text(json.dumps({"pairs": 5120, "captions": 3543, "rendered": True}))
    return tmp_path


def said(result):
    file = Path("results/runs/mgca.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder in the Hub's place, OWNER/NAME below it: huggingface_hub's functions copy to it and from it."""
    root = tmp_path / "remote"

    def matching(folder, patterns):
        return {path for pattern in patterns for path in Path(folder).rglob(pattern) if path.is_file()}

    def copy(files, source, target):
        for path in files:
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(source))

    class Api:
        def create_repo(self, repo_id, private=None, exist_ok=False):
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            (root / repo_id / ".private").write_text(str(private))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns=None):
            copy(matching(folder_path, allow_patterns), Path(folder_path), root / repo_id)
            return type("Commit", (), {"commit_url": f"hub/{repo_id}/commit/1"})

    def snapshot_download(repo_id, revision=None, allow_patterns=None):
        huggingface_hub.utils.validate_repo_id(repo_id)
        if not (root / repo_id).is_dir() or revision not in (None, "main"):
            raise errors.LocalEntryNotFoundError(repo_id)
        cache = tmp_path / "cache" / repo_id
        copy(matching(root / repo_id, allow_patterns), root / repo_id, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def found_by(segmenter):
    return segmenter.segment(picture(33, 40), NAMES).scores


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# ---- written and read again

WRITTEN = [
    "README.md",
    "clip/open_clip_config.json",
    "clip/open_clip_model.safetensors",
    "seeds/0/decoder.safetensors",
    "seeds/1/decoder.safetensors",
    "segmenter.json",
]


def test_a_saved_model_opens_elsewhere_with_its_clip_and_every_seed(project, tmp_path_factory, monkeypatch):
    expected = [found_by(Segmenter.load("models/mgca", "cpu", seed)) for seed in (0, 1)]
    Segmenter.load("models/mgca", "cpu").save_pretrained("handed/on")
    assert files("handed/on") == WRITTEN and files("handed") == [f"on/{name}" for name in WRITTEN]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move("handed/on", elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    shutil.rmtree(project)
    for seed, scores in enumerate(expected):
        assert np.array_equal(found_by(Segmenter.from_pretrained("model", device="cpu", seed=seed)), scores)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_a_model_pushed_to_the_hub_is_the_one_that_others_open(project, remote):
    segmenter = Segmenter.load("models/mgca", "cpu")
    assert segmenter.push_to_hub("me/mgca-small", private=True) == "hub/me/mgca-small/commit/1"
    assert files(remote / "me/mgca-small") == [".private", *WRITTEN] and (remote / "me/mgca-small/.private").read_text() == "True"
    opened = Segmenter.from_pretrained("me/mgca-small", revision="main", device="cpu")
    assert np.array_equal(found_by(opened), found_by(segmenter))
    assert 'Segmenter.from_pretrained("me/mgca-small")' in (remote / "me/mgca-small/README.md").read_text()


def test_only_weights_json_and_texts_are_downloaded(project, remote):
    Segmenter.load("models/mgca", "cpu").push_to_hub("me/model")
    for name in ("setup.py", "clip/tokenizer.pkl", "seeds/0/decoder.bin", "modeling.py"):
        (remote / "me/model" / name).write_text("raise SystemExit")
    assert files(hub.fetch("me/model")) == WRITTEN


def test_the_command_segments_by_a_model_of_the_hub(project, remote):
    segmenter = Segmenter.load("models/mgca", "cpu")
    segmenter.push_to_hub("me/model")
    shutil.rmtree("models")
    Image.fromarray(picture(33, 40)).save("a.png")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["segment", "a.png", "--classes", ",".join(NAMES), "--model", "hf-hub:me/model", "--device", "cpu"])
    assert not stopped.value.code
    assert np.array_equal(np.asarray(Image.open("out/a.labels.png")), segmenter.segment(picture(33, 40), NAMES).labels)


# ---- the card


def card():
    publish.write_model("models/mgca", "out", "me/mgca")
    return Path("out/README.md").read_text()


def test_a_card_says_data_metrics_and_limits(project):
    front, text = card().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["license"] == "mit" and yaml.safe_load(front)["pipeline_tag"] == "image-segmentation"
    for line in (
        "# mgca",
        "5,120 image-text pairs, 3,543 different captions",
        "| things      | pixel  | 20.0 ± 14.1 (2) |",  # of 10 and 30
        "| scenes      | pixel  | 41.5 ± 0.7 (2)  |",
        "0.45 on `things`",
        "- `mgca.k`: 0.06",
        "python 3.11.9, torch 2.15.0",
        "things `a4a4a4a4a4a4a4a4…`",
        "decoder of 74,114\nweights",
    ):
        assert line in text, line
    assert "`tcl.tau`" not in text  # of a method that it was not trained by
    assert "cartoon world" in text and "no use on photographs" in text


def test_a_card_of_photographs_speaks_of_no_cartoons(project):
    photographs = [["clip.model", "ViT-B-16-quickgelu"], ["clip.pretrained", "openai"], *RESULT["parameters"][2:]]
    said(RESULT | {"parameters": photographs})
    Path("results/prepare.json").write_text(json.dumps({"pairs": 5120, "captions": 3543, "rendered": False}))
    assert "cartoon" not in card() and "`ViT-B-16-quickgelu (openai)`" in Path("out/README.md").read_text()


@pytest.mark.parametrize("named, rendered", [("local-dir:models/clip", False), ("ViT-B-16", True)])
def test_a_card_tells_the_clip_and_the_pairs_apart(project, named, rendered):
    said(RESULT | {"parameters": [["clip.model", named], *RESULT["parameters"][1:]]})
    Path("results/prepare.json").write_text(json.dumps({"pairs": 7, "captions": 3, "rendered": rendered}))
    text = card()
    assert ("of no use on photographs" in text) != rendered and ("different captions: rendered scenes" in text) == rendered
    assert "license: other" in text


def test_a_card_of_a_supervised_model_says_that_label_maps_were_seen(project):
    said(RESULT | {"parameters": [[key, "supervised" if key == "train.method" else value] for key, value in RESULT["parameters"]]})
    assert "It was trained on label maps" in card() and "No label map was seen" not in Path("out/README.md").read_text()


# ---- what is refused


def test_what_cannot_be_written_is_named_and_nothing_is_left(project):
    def refused(kind, message):
        with pytest.raises(kind, match=message):
            publish.write_model("models/mgca", "out")
        assert not list(project.glob("out*"))

    said({key: value for key, value in RESULT.items() if key != "versions"})
    refused(ValueError, "results/runs/mgca.json lacks 'versions': evaluate the model again")
    Path("results/runs/mgca.json").unlink()
    refused(FileNotFoundError, "models/mgca: no result in results/runs")
    said(RESULT)
    Path("models/clip/open_clip_model.bin").write_bytes(b"")
    refused(ValueError, "open_clip_model.bin: weights are published as safetensors alone")
    shutil.rmtree("models/clip")
    refused(FileNotFoundError, "clip, the CLIP of models/mgca, does not exist")
    Path("out").mkdir()
    with pytest.raises(FileExistsError, match="out exists already"):
        publish.write_model("models/mgca", "out")


def test_a_segmenter_that_was_made_in_memory_has_no_files_to_save(clip, decoder):
    with pytest.raises(ValueError, match="only a segmenter that Segmenter.load opened"):
        Segmenter(clip, decoder, changed()).save_pretrained("out")


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (lambda: errors.HFValidationError("no"), FileNotFoundError, "me/absent: no such folder, and no such model on the Hub"),
        (lambda: errors.LocalEntryNotFoundError("no\nnet"), ConnectionError, "me/absent: .* and it cannot be downloaded: no net"),
        (lambda: errors.OfflineModeIsEnabled("offline"), ConnectionError, "it cannot be downloaded: offline"),
    ],
)
def test_a_name_that_nobody_knows_is_a_clear_error(project, monkeypatch, error, kind, message):
    def fail(*arguments, **options):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=message):
        Segmenter.from_pretrained("me/absent")


def test_a_folder_without_a_model_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no segmenter.json: expected a model that `ovseg publish` wrote"):
        Segmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize("gone", ["seeds/0/decoder.safetensors", "clip"])
def test_a_model_that_lost_a_part_is_a_clear_error(project, gone):
    publish.write_model("models/mgca", "out")
    shutil.move(f"out/{gone}", "gone")
    with pytest.raises(FileNotFoundError, match=gone):
        Segmenter.from_pretrained("out", device="cpu")


@pytest.mark.parametrize(
    "model, pretrained, message",
    [
        ("local-dir:../clip", None, "outside of it"),
        ("local-dir:/etc", None, "outside of it"),
        ("local-dir:clip/../../clip", None, "outside of it"),
        ("hf-hub:you/other", None, "allowed are open_clip's names"),
        ("ViT-B-16", "weights.pt", "allowed are open_clip's tags"),
        ("ViT-B-16", "clip/weights", "allowed are open_clip's tags"),
    ],
)
def test_a_model_may_not_name_files_outside_or_pickles(project, model, pretrained, message):
    publish.write_model("models/mgca", "out")
    file = Path("out/segmenter.json")
    config = json.loads(file.read_text())
    config["clip"] |= {"model": model, "pretrained": pretrained}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        Segmenter.from_pretrained("out", device="cpu")


def test_a_pickle_beside_the_clip_is_not_opened(project):
    publish.write_model("models/mgca", "out")
    Path("out/clip/open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="open_clip_pytorch_model.bin would be unpickled"):
        Segmenter.from_pretrained("out", device="cpu")


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("tokenizer_config.json", '{"auto_map": {}}', "tokenizer_config.json holds auto_map"),
        ("more.json", '{"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": true}}}', "more.json holds trust_remote_code"),
        ("open_clip_config.json", '{"model_cfg": {"vision_cfg": {"timm_model_name": "hf-hub:x/y"}}}', "allowed are timm's names"),
    ],
)
def test_a_clip_that_would_fetch_code_is_refused(project, file, content, message):
    publish.write_model("models/mgca", "out")
    Path("out/clip", file).write_text(content)
    with pytest.raises(ValueError, match=message):
        hub.fetch("out")
