"""Whether patches are told from noise: shares counted by hand, and by CLIPs whose patches are known."""

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture

from ovseg.clip.dense import DENSE_MODES
from ovseg.study import sanity

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 40


class Known:
    """A CLIP in which picture i, of the colour i, and text "i" have the i-th unit vector, of different lengths. Its patches are right in
    mode `clip`; in `maskclip` the first half of pictures has those of the next picture, all at one place; elsewhere all are alike."""

    def encode_image(self, images):
        return 3 * torch.eye(COUNT)[torch.from_numpy(images[:, 0, 0, 0]).long()]

    def encode_text(self, texts):
        return torch.stack([(1 + int(text)) * torch.eye(COUNT)[int(text)] for text in texts])

    def encode_modes(self, images, modes):
        index = torch.from_numpy(images[:, 0, 0, 0]).long()
        shifted = torch.where(index < COUNT // 2, index + 1, index)
        dense = {mode: torch.ones(len(images), COUNT, 2, 2) for mode in modes}
        dense["clip"] = torch.eye(COUNT)[index][:, :, None, None].expand(-1, -1, 2, 2)
        dense["maskclip"] = torch.zeros(len(images), COUNT, 2, 2)
        dense["maskclip"][:, :, 1, 0] = torch.eye(COUNT)[shifted]
        return {mode: dense[mode] for mode in modes}


PAIRS = [(np.full((4, 4, 3), index, np.uint8), str(index)) for index in range(COUNT)]


@pytest.mark.parametrize("batch", [7, 100])
def test_shares_are_those_of_known_patches(batch):
    found = sanity.measure(Known(), PAIRS, batch)
    assert found.pop("clip") == found.pop(sanity.WHOLE) == 1
    assert found.pop("maskclip") == pytest.approx(0.5)
    assert found == pytest.approx({mode: 1 / COUNT for mode in DENSE_MODES if mode not in ("clip", "maskclip")})  # all find the same text


@pytest.mark.parametrize("count", [40, 200, 1000])
def test_noise_is_what_guessing_reaches_by_the_binomial_distribution(count):
    def reached(hits):  # by guessing: P(at least `hits`)
        return 1 - sum(math.comb(count, k) * (1 / count) ** k * (1 - 1 / count) ** (count - k) for k in range(hits))

    for hits in range(12):
        assert sanity.is_noise(hits / count, count) == (reached(hits) > 0.01)


def test_patches_of_random_weights_are_noise(clip):
    pairs = [(picture(32, 32, seed), f"a picture of thing {seed}") for seed in range(60)]
    found = sanity.measure(clip, pairs)
    assert set(found) == {sanity.WHOLE, *DENSE_MODES} and all(sanity.is_noise(share, 60) for share in found.values())


def write_tar(path, captions):
    with tarfile.open(path, "w") as tar:
        for index, caption in enumerate(captions):
            out = io.BytesIO()
            Image.fromarray(picture(20, 30, index)).save(out, "PNG")
            for kind, data in {"png": out.getvalue(), "txt": caption.encode()}.items():
                member = tarfile.TarInfo(f"{index}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_pairs_have_captions_of_their_own(tmp_path):
    paths = [write_tar(tmp_path / "a.tar", ["a", "b", "a", ""]), write_tar(tmp_path / "b.tar", ["b", "c", "d"])]
    assert [caption for _, caption in sanity.distinct_pairs(paths, 3, 16)] == ["a", "b", "c"]
    pairs = sanity.distinct_pairs(paths, 100, 16)
    assert [caption for _, caption in pairs] == ["a", "b", "c", "d"] and {image.shape for image, _ in pairs} == {(16, 16, 3)}


def test_the_small_clip_reads_its_world_and_the_command_says_so(tmp_path, monkeypatch, capsys):
    from ovseg import params
    from ovseg.world import scenes

    root = Path(__file__).resolve().parents[2]
    shards = tmp_path / "data/prepared"
    settings = params.load(path=root / "params.yaml").scenes.model_copy(update={"pairs": 60, "pictures": 1})
    scenes.render_shards(settings, shards, tmp_path / "kept")
    (shards / "shards.txt").write_text("data/prepared/train-00000.tar\n")
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    (tmp_path / "models").symlink_to(root / "models")
    monkeypatch.setattr(params, "enter_project", lambda: monkeypatch.chdir(tmp_path))
    sanity.main(["--pairs", "40"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("local-dir:models/clip: pictures nearest to their own caption among 40; chance 2.5%")
    share = {line.split("  ")[0]: float(line.split("%")[0].split()[-1]) for line in lines[1:]}
    assert share[sanity.WHOLE] > 30 and share["maskclip"] > 15 and "noise" not in "".join(lines[1:3])


@pytest.mark.parametrize("arguments, message", [(["--pairs", "9"], "--pairs = 9: at least 10"), ([], "dvc repro prepare")])
def test_what_it_cannot_do_is_one_line(tmp_path, monkeypatch, arguments, message):
    from ovseg import params

    (tmp_path / "params.yaml").write_text((Path(__file__).resolve().parents[2] / "params.yaml").read_text())
    monkeypatch.setattr(params, "enter_project", lambda: monkeypatch.chdir(tmp_path))
    with pytest.raises(SystemExit, match=message):
        sanity.main(arguments)
