"""Publishing a model and opening a published one: nothing is lost on the way, nothing but safetensors and JSON is taken."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from tiny import TINY, P, changed, picture

from ovseg import Segmenter, cli
from ovseg.methods.decoder import Decoder
from ovseg.segmentation import hub
from ovseg.study import publish
from ovseg.study.runs import Run, make_result, write_result
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["cat", "sofa", "tree"]
IOU = {"background": 10.0, "cat": 20.0, "sofa": None}


@pytest.fixture
def project(clip, decoder, tmp_path, monkeypatch):
    """A project with models/mgca, two seeds of it, its CLIP in models/clip and its result. The working directory."""
    monkeypatch.chdir(tmp_path)
    pretraining.save(clip.clip, TINY, "models/clip")
    Segmenter(clip, decoder, changed(unit="meta-point")).save_settings("models/mgca", P.clip)
    for seed, of_seed in enumerate((decoder, Decoder(clip.width))):
        of_seed.save(f"models/mgca/seeds/{seed}")
        Path(f"models/mgca/seeds/{seed}/history.csv").write_text("not published\n")
    found = {"street": {(seed, "meta-point"): {name: iou and iou + 4 * seed for name, iou in IOU.items()} for seed in range(2)}}
    write_result(make_result(Run(), P, found, {"train": 2.0, "evaluate": 1.0}, 1234), "results/runs/mgca.json")
    return tmp_path


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """The Hub as a folder: a repository owner/name is hub/owner/name."""
    shelf = tmp_path / "hub"

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        for path in Path(folder_path).rglob("*"):
            if path.is_file() and any(path.match(pattern) for pattern in allow_patterns):
                (shelf / repo_id / path.relative_to(folder_path)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, shelf / repo_id / path.relative_to(folder_path))
        return type("Commit", (), {"commit_url": f"uploaded to {repo_id}"})()

    def snapshot_download(name, revision, allow_patterns):
        assert "*.bin" not in allow_patterns
        if revision == "offline":
            raise errors.OfflineModeIsEnabled("no network")
        if not (shelf / name).is_dir():
            raise errors.HFValidationError("no such repository")
        return str(shelf / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, private, exist_ok: (shelf / name).mkdir(parents=True))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return shelf


def same(first, second):
    found = [segmenter.segment(picture(33, 50), NAMES) for segmenter in (first, second)]
    return np.array_equal(found[0].labels, found[1].labels) and np.array_equal(found[0].scores, found[1].scores)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_published_model_segments_bit_by_bit_as_the_trained_one(project, repositories, seed):
    expected = Segmenter.load("models/mgca", "cpu", seed)
    publish.write("models/mgca", "out/small", "me/small")
    published = ["README.md", "clip/open_clip_config.json", "clip/open_clip_model.safetensors"]
    assert files("out/small") == sorted([*published, "seeds/0/decoder.safetensors", "seeds/1/decoder.safetensors", "segmenter.json"])
    publish.push("out/small", "me/small")
    shutil.rmtree("models")  # nothing else is needed
    for name in ("out/small", "me/small"):
        assert same(Segmenter.from_pretrained(name, device="cpu", seed=seed), expected), name
    assert files("hub/me/small") == files("out/small")


def test_the_card_tells_what_the_result_holds(project):
    publish.write("models/mgca", "out", "me/small")
    head, card = Path("out/README.md").read_text().split("---\n")[1:3]
    assert "license: mit" in head and 'Segmenter.from_pretrained("me/small")' in card
    assert "| street      | meta-point | 17.0 ± 2.8 (2) |" in card  # of 15 and 19
    assert f"{P.segment.threshold:g} on `street`" in card and "MGCA" in card and "1,234" in card and "`mgca.alpha`: 0.4" in card
    assert "cartoon scenes" in card and "tcl." not in card and "No label map was seen" in card
    result = json.loads(Path("results/runs/mgca.json").read_text())
    other = [["clip.model", "ViT-B-16"] if key == "clip.model" else [key, value] for key, value in result["parameters"]]
    assert "cartoon" not in publish.card(result | {"parameters": other}, "me/large")
    labels = [[key, "supervised"] if key == "train.method" else [key, value] for key, value in result["parameters"]]
    assert "trained on label maps" in publish.card(result | {"parameters": labels}, "me/ceiling")


def test_the_command_writes_and_uploads(project, repositories, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["publish", "models/mgca", "out", "--push", "me/small"])
    assert not stopped.value.code and capsys.readouterr().out.split("\n")[:2] == ["out", "uploaded to me/small"]
    assert (repositories / "me/small/segmenter.json").is_file()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda: shutil.rmtree("models/mgca"), "models/mgca holds no segmenter.json"),
        (lambda: Path("results/runs/mgca.json").unlink(), "models/mgca: no result in results/runs"),
        (lambda: shutil.rmtree("models/clip"), "models/clip, the CLIP of models/mgca, does not exist"),
        (lambda: Path("models/clip/weights.bin").touch(), "models/clip/weights.bin: weights are published as safetensors alone"),
        (lambda: Path("out").mkdir(), "out exists already"),
    ],
)
def test_what_cannot_be_published_is_one_line(project, capsys, spoil, message):
    spoil()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["publish", "models/mgca", "out"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not Path("out/segmenter.json").exists()


@pytest.mark.parametrize(
    "named, message",
    [
        ({"model": "local-dir:../clip"}, "outside of the model"),
        ({"model": "local-dir:clip/../../clip"}, "outside of the model"),
        ({"model": "local-dir:/etc"}, "outside of the model"),
        ({"model": "hf-hub:somebody/model"}, "allowed are open_clip's names"),
        ({"model": "ViT-B-16", "pretrained": "weights.pt"}, "allowed are open_clip's tags"),
        ({"model": "ViT-B-16", "pretrained": "clip/weights"}, "allowed are open_clip's tags"),
    ],
)
def test_a_published_model_names_its_clip_by_tag_or_holds_it(project, named, message):
    publish.write("models/mgca", "out")
    config = json.loads(Path("out/segmenter.json").read_text())
    Path("out/segmenter.json").write_text(json.dumps(config | {"clip": config["clip"] | named}))
    with pytest.raises(ValueError, match=message):
        hub.fetch("out")


def test_weights_that_would_be_unpickled_are_refused(project):
    publish.write("models/mgca", "out")
    Path("out/clip/open_clip_pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="open_clip_pytorch_model.bin would be unpickled: allowed are safetensors"):
        Segmenter.from_pretrained("out")


def test_a_model_that_is_not_there_is_a_clear_error(project, repositories):
    with pytest.raises(FileNotFoundError, match="me/nothing: no such folder, and no such model on the Hub at revision v2"):
        Segmenter.from_pretrained("me/nothing", revision="v2")
    with pytest.raises(ConnectionError, match="me/nothing: no such folder, and the Hub cannot be reached: no network"):
        Segmenter.from_pretrained("me/nothing", revision="offline")
    with pytest.raises(FileNotFoundError, match="results holds no segmenter.json"):
        Segmenter.from_pretrained("results")
