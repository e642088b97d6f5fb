"""Saved and published models: what is written and read again, what a card says, what is refused. A folder stands in for the Hub."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import errors, hub_mixin
from tiny import TINY, P, changed, picture, reading

from ovseg import Segmenter
from ovseg.segmentation import hub
from ovseg.training.decoder import Decoder
from ovseg.world import pretraining

PARAMETERS = {"clip.model": "local-dir:models/clip", "clip.pretrained": None, "mgca.k": 0.06, "tcl.tau": 0.07, "train.method": "mgca"}
RESULT = {
    "miou": {"things": {"pixel": 20.0}, "scenes": {"pixel": 41.5}},
    "thresholds": {"things": 0.45},
    "classes": [["things", "a4" * 32], ["scenes", "b7" * 32]],
    "versions": [["python", "3.11.9"], ["torch", "2.15.0"]],
    "weights": 74114,
    "seeds": [{"miou": {"things": {"pixel": things}, "scenes": {"pixel": scenes}}} for things, scenes in ((10.0, 41.0), (30.0, 42.0))],
    "data": {"pairs": 5120, "captions": 3543, "rendered": True},
}
PHOTOS = {"data": {"pairs": 7, "captions": 3, "rendered": False}}
WRITTEN = ["README.md", "clip/open_clip_config.json", "clip/open_clip_model.safetensors", "config.json", "seeds/0/decoder.safetensors"]
WRITTEN += ["seeds/1/decoder.safetensors", "segmenter.json"]


def made(clip, decoder):
    return Segmenter(reading(clip, "clip"), decoder, changed(unit="meta-point"))


@pytest.fixture
def project(clip, decoder, tmp_path, monkeypatch):
    """A project with models/default at two seeds, its result and models/clip; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    pretraining.save_clip(clip.clip, TINY, "models/clip")
    own = {"model": "local-dir:models/clip", "pretrained": None, "precision": "float32", "dense": "clip"}
    made(clip, decoder).save_settings("models/default", P.clip.model_copy(update=own))
    decoder.save("models/default/seeds/0")
    Decoder(clip.width).save("models/default/seeds/1")
    Path("models/default/seeds/0/history.csv").write_text("step\n")
    write_result()
    return tmp_path


def write_result(parameters=(), **changes):
    values = PARAMETERS | {"segment.templates": ["a {}."]} | dict(parameters)
    Path("models/default/result.json").write_text(json.dumps(RESULT | changes | {"parameters": list(values.items())}))


def card():
    shutil.rmtree("out", ignore_errors=True)
    hub.write_model("models/default", "out", "me/small")
    return Path("out/README.md").read_text(encoding="utf-8")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def scores(segmenter):
    return segmenter.segment(picture(33, 40), ["cat", "sofa"]).scores


def test_a_saved_model_opens_elsewhere_with_its_clip_and_every_seed(project, clip, decoder, tmp_path_factory, monkeypatch):
    expected = [scores(made(clip, one)) for one in (decoder, Decoder(clip.width))]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    Segmenter.load("models/default", "cpu").save_pretrained("handed/on")
    assert files("handed/on") == WRITTEN and 'from_pretrained("handed/on")' in Path("handed/on/README.md").read_text()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    opened = [Segmenter.load(project / "models/default", "cpu", seed) for seed in (0, 1)]  # from another working directory
    shutil.move(project / "handed/on", elsewhere / "model")
    shutil.rmtree(project)
    opened += [Segmenter.from_pretrained("model", device="cpu", seed=seed) for seed in (0, 1)]
    assert opened[0].clip.dense == "clip" and opened[0].settings == changed(unit="meta-point")
    for segmenter, of_seed in zip(opened, [*expected, *expected], strict=True):
        np.testing.assert_allclose(scores(segmenter), of_seed, atol=1e-5)


def test_a_missing_part_of_a_model_and_an_unknown_name_are_one_line_errors(project, monkeypatch):
    for error in (errors.HFValidationError("no\nnet"), errors.LocalEntryNotFoundError("no\nnet")):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
        with pytest.raises(FileNotFoundError, match="me/absent: no such folder, and no download from the Hub: no net"):
            Segmenter.from_pretrained("me/absent")
    for gone, message in {"default/seeds/0": "seeds/0/decoder", "clip": "clip", "default/segmenter.json": "holds no segmenter"}.items():
        Path("models", gone).rename(gone.replace("/", " "))
        with pytest.raises(FileNotFoundError, match=message):
            Segmenter.load("models/default", device="cpu")


def test_a_model_pushed_to_the_hub_is_the_one_that_others_open(project, monkeypatch):
    def upload_folder(repo_id, folder_path, **options):
        shutil.copytree(folder_path, Path("remote", repo_id))
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    api = Mock()
    api.create_repo.side_effect = lambda repo_id, **options: SimpleNamespace(repo_id=repo_id)
    api.upload_folder.side_effect = upload_folder
    for module in (huggingface_hub, hub_mixin):
        monkeypatch.setattr(module, "HfApi", lambda **options: api)
    download = Mock(return_value="remote/me/small")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    segmenter = Segmenter.load("models/default", "cpu")
    segmenter.push_to_hub("me/small", private=True)
    assert files("remote/me/small") == WRITTEN and api.create_repo.call_args.kwargs["private"]
    assert card() == Path("remote/me/small/README.md").read_text() and hub.push("out", "me/other") == "hub/me/other/commit/1"
    assert files("remote/me/other") == WRITTEN and 'from_pretrained("me/small")' in card()
    assert np.array_equal(scores(Segmenter.from_pretrained("me/small", revision="v1", device="cpu")), scores(segmenter))
    download.assert_called_once_with("me/small", allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"], revision="v1")  # no code


def test_a_card_states_results_data_and_limits(project):
    front, text = card().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["license"] == "mit" and yaml.safe_load(front)["pipeline_tag"] == "image-segmentation"
    for line in (
        "# small",
        "A decoder of 74,114 weights, trained by the method\nMGCA on",
        "no label map was seen in training",
        "\n| things | pixel | 20.0 ± 14.1 (2) |\n| scenes | pixel | 41.5 ± 0.7 (2) |\n",  # things: of 10 and 30
        "on `things`: 0.45.",
        "5,120 image-text pairs, 3,543 different captions: rendered scenes",
        "of no use on photographs",
        "- `mgca.k`: 0.06",
        "python 3.11.9, torch 2.15.0. SHA-256 of the class names, one a line: things `a4a4a4a4a4a4a4a4…`, scenes",
    ):
        assert line in text, line
    assert "`tcl.tau`" not in text and "templates" not in text  # of another method; of many lines
    write_result({"clip.model": "ViT-B-16", "clip.pretrained": "openai", "train.method": "mgca+tcl"}, **PHOTOS)
    text = card()
    assert "cartoon" not in text and "`ViT-B-16 (openai)`" in text and "license: other" in text and "MGCA + TCL" in text
    write_result(**PHOTOS)
    text = card()
    assert "of no use on photographs" in text and "rendered scenes, with" not in text and "license: other" in text
    write_result({"train.method": "supervised"}, data=None, thresholds={})
    text = card()
    assert "It was trained on label maps" in text and "no label map was seen" not in text and "No benchmark has a background" in text


def test_a_model_that_cannot_be_published_is_named_and_nothing_is_written(project, clip, decoder):
    def refused(kind, message):
        with pytest.raises(kind, match=message):
            hub.write_model("models/default", "out")
        assert not Path("out").exists()

    with pytest.raises(FileExistsError, match="models exists already and is not empty"):
        hub.write_model("models/default", "models")
    file = Path("models/default/result.json")
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "data"}))
    refused(ValueError, "models/default/result.json is incomplete .*'data' is undefined.*: evaluate the model again")
    file.unlink()
    refused(FileNotFoundError, "models/default holds no result.json")
    write_result()
    Path("models/clip/open_clip_model.bin").write_bytes(b"")
    refused(ValueError, "open_clip_model.bin would be unpickled")
    shutil.rmtree("models/clip")
    refused(FileNotFoundError, "clip, the CLIP of models/default, does not exist")
    with pytest.raises(ValueError, match="only a segmenter that Segmenter.load opened"):
        made(clip, decoder).save_pretrained("out")


def test_a_published_model_may_not_name_files_outside_or_pickles_nor_run_code(tmp_path):
    def write(model, pretrained=None):
        (tmp_path / "segmenter.json").write_text(json.dumps({"clip": {"model": model, "pretrained": pretrained}}))

    for model in ("local-dir:../clip", "local-dir:/etc", "hf-hub:you/other"):
        write(model)
        with pytest.raises(ValueError, match="its CLIP is .*: must be a name of open_clip or local-dir:clip"):
            Segmenter.from_pretrained(tmp_path)
    for tag in ("weights.pt", "clip/weights"):
        write("ViT-B-16", tag)
        with pytest.raises(ValueError, match="must be a tag of open_clip"):
            Segmenter.from_pretrained(tmp_path)
    write("local-dir:clip")
    (tmp_path / "clip/deep").mkdir(parents=True)
    (tmp_path / "clip/tokenizer.json").write_text('{"timm_model_name": "vit_base"}')  # is allowed
    for file, content in {
        "deep/weights.bin": "",
        "tokenizer_config.json": '{"auto_map": {}}',
        "more.json": '{"text_cfg": {"tokenizer_kwargs": {"trust\\u005fremote_code": true}}}',  # an escaped underscore
        "open_clip_config.json": '{"model_cfg": {"vision_cfg": {"timm_model_name": "hf-hub\\u003ax"}}}',
    }.items():
        assert hub.fetch(tmp_path) == tmp_path
        (tmp_path / "clip" / file).write_text(content)
        with pytest.raises(ValueError, match=f"{Path(file).name} (would be unpickled|holds .*: a CLIP must fetch no code)"):
            hub.fetch(tmp_path)
        (tmp_path / "clip" / file).unlink()
