import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from ovseg import params
from ovseg.clip import features
from ovseg.clip.frozen import FrozenCLIP
from ovseg.data import shards
from ovseg.data.captions import TextBank, nouns
from ovseg.methods import alignment, training
from ovseg.methods.batches import CachedImages, Pairs, StreamedImages, open_pairs
from ovseg.methods.checkpoint import fingerprint
from ovseg.methods.decoder import Decoder
from ovseg.methods.training import learning_rate
from ovseg.world import pretraining

pytestmark = pytest.mark.usefixtures("one_thread")

P = params.load(path=Path(__file__).parents[2] / "params.yaml")
SETTINGS = P.train.model_copy(
    update={"batch": 8, "epochs": 3.0, "warmup_epochs": 0.5, "precision": "float32", "checkpoint_steps": 2, "lr": 0.01, "workers": 0}
)
CAPTIONS = ["a dog and a cat.", "the sea", "a boat on the sea", "running quickly", "a tree, a house and the sky", "a cat."]
WIDTH, PAIRS, STEPS = 16, 24, 9


def changed(**values):
    return SETTINGS.model_copy(update=values)


@pytest.fixture(scope="module")
def bank():
    return TextBank.build([CAPTIONS[n % len(CAPTIONS)] for n in range(PAIRS)], ["a photo of a {}.", "many {}."])


@pytest.fixture(scope="module")
def texts(bank):
    return np.random.default_rng(1).normal(size=(len(bank.texts), WIDTH)).astype(np.float16)


@pytest.fixture(scope="module")
def cached():
    return CachedImages(np.random.default_rng(2).normal(size=(PAIRS, WIDTH, 4, 4)).astype(np.float16))


def weights(decoder):
    return {name: value.clone() for name, value in decoder.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def train(settings, mgca, images, bank, texts, checkpoint, device="cpu", seed=0):
    return training.train(settings, seed, mgca, images, bank, texts, checkpoint, device)[:2]


# ---- the schedule


def test_rate_by_hand():
    rates = [learning_rate(step, 10, 4, 2.0) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]  # up to the peak, which the cosine begins with
    assert rates[7] == pytest.approx(1.0)  # half of the cosine
    assert rates[9] == pytest.approx(1 + math.cos(math.pi * 5 / 6))
    assert learning_rate(10, 10, 4, 2.0) == pytest.approx(0)


def test_rate_without_warm_up_only_falls():
    rates = [learning_rate(step, 50, 0, 0.1) for step in range(50)]
    assert rates[0] == 0.1 and rates == sorted(rates, reverse=True) and rates[-1] > 0


def test_rate_of_a_single_step_is_the_peak():
    assert learning_rate(0, 1, 0, 0.1) == 0.1 and learning_rate(0, 1, 1, 0.1) == 0.1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_first_update_by_hand(optimizer):
    decoder = Decoder(2)
    before = weights(decoder)
    parameters = dict(decoder.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    training.make_optimizer(decoder, changed(optimizer=optimizer, lr=0.1, weight_decay=0.5)).step()
    for name, weight in before.items():
        # bias correction makes Adam's first step lr * g / |g|; the decay joins the gradient, or shrinks the weight by itself
        gradient = gradients[name] + (0.5 * weight if optimizer == "adam" else 0)
        expected = (weight if optimizer == "adam" else weight * (1 - 0.1 * 0.5)) - 0.1 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameters[name].detach(), expected)


# ---- training on cached features


def test_a_run_reports_every_step(cached, bank, texts, tmp_path):
    decoder, history = train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    assert [row["step"] for row in history] == list(range(STEPS))
    assert [row["epoch"] for row in history] == pytest.approx([step / 3 for step in range(STEPS)])
    assert [row["lr"] for row in history] == [learning_rate(step, STEPS, 2, 0.01) for step in range(STEPS)]
    for row in history:
        assert math.isfinite(row["loss"])
        assert row["loss"] == pytest.approx(row["object"] + row["region"] + row["pixel"], rel=1e-5)
    assert history[0]["gate0"] != 0 and history[-1]["gate1"] == decoder.blocks[1].gate.item()
    assert not decoder.training


@pytest.mark.parametrize("epochs, batch, steps", [(1.0, 8, 3), (0.4, 8, 1), (0.01, 8, 1), (1.0, 7, 3), (2.5, 12, 5), (1.0, 24, 1)])
def test_a_run_has_as_many_steps_as_its_epochs_have_full_batches(cached, bank, texts, tmp_path, epochs, batch, steps):
    settings = changed(epochs=epochs, batch=batch, warmup_epochs=0.0)
    assert len(train(settings, P.mgca, cached, bank, texts, tmp_path / "run.pt")[1]) == steps


def test_weights_change_and_follow_the_seed(cached, bank, texts, tmp_path):
    runs = []
    for run, seed in enumerate((0, 0, 1)):
        decoder, _ = train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / f"{run}.pt", seed=seed)
        runs.append(weights(decoder))
    assert same(runs[0], runs[1])
    assert not any(torch.equal(runs[0][name], runs[2][name]) for name in runs[0] if name.endswith(("conv.weight", "gate")))
    torch.manual_seed(0)
    start = weights(Decoder(WIDTH))  # what train begins with
    assert not any(torch.equal(runs[0][name], start[name]) for name in start)


def test_each_step_draws_texts_of_its_pairs_anew(cached, bank, texts, tmp_path, monkeypatch):
    seen, real = [], alignment.losses

    def losses(pixels, drawn, subjects, mgca, world):
        seen.append((drawn.numpy(), subjects.numpy()))
        return real(pixels, drawn, subjects, mgca, world)

    monkeypatch.setattr(alignment, "losses", losses)
    train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    batches = [rows for epoch in range(3) for rows, _ in cached.epoch(0, epoch, 8, 0, "cpu")]
    drew_caption = [set() for _ in range(8)]  # of each place in a batch, over the steps
    for rows, (drawn, subjects) in zip(batches, seen, strict=True):
        ids = np.array([np.abs(texts.astype(np.float32) - row).sum(1).argmin() for row in drawn])
        assert np.array_equal(drawn, texts[ids]) and np.array_equal(subjects, bank.subjects(ids))
        for place, (row, text) in enumerate(zip(rows, (bank.texts[i] for i in ids), strict=True)):
            caption = CAPTIONS[row % len(CAPTIONS)]
            prompts = [template.format(noun) for noun in nouns(caption) for template in bank.templates]
            assert text == caption or text in prompts
            if prompts:
                drew_caption[place].add(text == caption)
    assert drew_caption.count({True, False}) >= 4


def test_texts_on_disk_train_as_texts_in_memory(cached, bank, texts, tmp_path):
    features.create_cached(tmp_path / "texts.npy", texts.shape)[:] = texts
    bank.save(tmp_path)
    (tmp_path / "captions.txt").unlink()  # training needs none of the strings
    runs = [
        train(SETTINGS, P.mgca, cached, bank, texts.astype(np.float32), tmp_path / "memory.pt"),
        train(SETTINGS, P.mgca, cached, TextBank.load(tmp_path), features.open_cached(tmp_path / "texts.npy"), tmp_path / "disk.pt"),
    ]
    assert same(*(weights(decoder) for decoder, _ in runs)) and runs[0][1] == runs[1][1]


def test_only_the_wanted_levels_are_trained_on(cached, bank, texts, tmp_path):
    mgca = P.mgca.model_copy(update={"granularity": "pixel"})
    _, history = train(SETTINGS, mgca, cached, bank, texts, tmp_path / "run.pt")
    assert "object" not in history[0] and all(row["loss"] == row["pixel"] for row in history)


def test_training_lowers_the_loss(bank, texts, tmp_path):
    # what each image shows is its caption, half hidden in noise that no text says anything of
    rng = np.random.default_rng(3)
    shown = texts[bank.caption].astype(np.float32)[:, :, None, None] * (rng.random((PAIRS, 1, 4, 4)) < 0.4)
    images = CachedImages((shown + 1.5 * rng.normal(size=shown.shape)).astype(np.float16))
    settings = changed(epochs=40.0, caption_probability=1.0, checkpoint_steps=1000)
    _, history = train(settings, P.mgca, images, bank, texts, tmp_path / "run.pt")
    first, last = (np.mean([row["loss"] for row in part]) for part in (history[:12], history[-12:]))
    assert last < 0.8 * first


def test_a_batch_larger_than_the_data_is_a_clear_error(cached, bank, texts, tmp_path):
    with pytest.raises(ValueError, match=r"train.batch = 25: allowed are 2\.\.24, the number of pairs"):
        train(changed(batch=25), P.mgca, cached, bank, texts, tmp_path / "run.pt")


def test_a_loss_that_is_not_finite_is_a_clear_error(cached, bank, texts, tmp_path):
    with pytest.raises(FloatingPointError, match="smaller train.lr"):
        train(SETTINGS, P.mgca, cached, bank, np.full_like(texts, np.nan), tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


# ---- being killed


class Killed(BaseException):
    pass


def killed_at(step, monkeypatch):
    """Make a run stop in the middle of that step, once."""
    calls, real = iter(range(1000)), alignment.losses

    def losses(*arguments):
        if next(calls) == step:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(alignment, "losses", losses)


@pytest.mark.parametrize("step", [1, 4, 5, 8])
@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "precision": "bfloat16"}], ids=["adamw float32", "adam bfloat16"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(cached, bank, texts, tmp_path, monkeypatch, step, options):
    settings = changed(**options)
    expected, history = train(settings, P.mgca, cached, bank, texts, tmp_path / "whole.pt")
    killed_at(step, monkeypatch)
    with pytest.raises(Killed):
        train(settings, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    assert (tmp_path / "run.pt").exists() == (step >= SETTINGS.checkpoint_steps)
    resumed, rows = train(settings, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    assert same(weights(resumed), weights(expected)) and rows == history


def test_a_run_resumes_at_its_last_checkpoint(cached, bank, texts, tmp_path, monkeypatch):
    killed_at(5, monkeypatch)
    with pytest.raises(Killed):
        train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    killed_at(STEPS - 4, monkeypatch)  # steps 4 to 8 are left: one more would raise
    assert len(train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "run.pt")[1]) == STEPS


def test_a_finished_run_is_not_trained_again(cached, bank, texts, tmp_path, monkeypatch):
    decoder, history = train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    killed_at(0, monkeypatch)
    again, rows = train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "run.pt")
    assert same(weights(again), weights(decoder)) and rows == history


def test_checkpoint_intervals_and_workers_change_nothing(cached, bank, texts, tmp_path, monkeypatch):
    expected, _ = train(SETTINGS, P.mgca, cached, bank, texts, tmp_path / "whole.pt")
    killed_at(5, monkeypatch)
    with pytest.raises(Killed):
        train(changed(checkpoint_steps=3), P.mgca, cached, bank, texts, tmp_path / "run.pt")
    killed_at(STEPS - 3, monkeypatch)
    resumed, _ = train(changed(checkpoint_steps=50, workers=4), P.mgca, cached, bank, texts, tmp_path / "run.pt")
    assert same(weights(resumed), weights(expected))


OTHERS = {
    "settings": lambda run: run | {"settings": changed(lr=0.02)},
    "seed": lambda run: run | {"seed": 5},
    "method": lambda run: run | {"mgca": P.mgca.model_copy(update={"tau": 0.1})},
    "texts": lambda run: run | {"texts": run["texts"] * 2},
    "images": lambda run: run | {"images": CachedImages(run["images"].array[::-1].copy())},
    "captions": lambda run: run | {"bank": TextBank.build(list(reversed(CAPTIONS)) * 4, run["bank"].templates)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_not_used(cached, bank, texts, tmp_path, monkeypatch, other):
    run = {"settings": SETTINGS, "mgca": P.mgca, "images": cached, "bank": bank, "texts": texts}
    path = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        killed_at(5, patch)
        with pytest.raises(Killed):
            train(**run, checkpoint=path)
    assert path.exists()
    found, _ = train(**other(run), checkpoint=path)
    expected, _ = train(**other(run), checkpoint=tmp_path / "fresh.pt")
    assert same(weights(found), weights(expected))


def test_a_checkpoint_is_replaced_whole(cached, bank, texts, tmp_path, monkeypatch):
    path = tmp_path / "made" / "run.pt"
    killed_at(3, monkeypatch)
    with pytest.raises(Killed):
        train(SETTINGS, P.mgca, cached, bank, texts, path)
    before = path.read_bytes()

    def dies(state, target):
        Path(target).write_bytes(b"half of it")
        raise Killed

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(Killed):
        train(SETTINGS, P.mgca, cached, bank, texts, path)
    assert path.read_bytes() == before


@pytest.fixture
def project(cached, bank, texts, tmp_path, monkeypatch):
    """A project's folder with what `prepare` and `encode` leave. Returns a function that trains into models/mgca/seeds/SEED."""
    monkeypatch.chdir(tmp_path)
    bank.save("data/prepared")
    Path("data/prepared/shards.txt").write_text("")
    for name, array in {"pairs": cached.array, "texts": texts}.items():
        features.create_cached(Path(f"data/features/train/{name}.npy"), array.shape)[:] = array
    return lambda seed=0, **values: training.run(
        Path(f"models/mgca/seeds/{seed}"), seed, P.clip, P.mgca, changed(threads=1, **values), torch.device("cpu")
    )


def contents(folder="models/mgca/seeds/0"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_finished_training_is_kept_and_its_checkpoint_is_gone(project):
    assert project()
    before = contents()
    assert set(before) == {"decoder.safetensors", "history.csv", "training.json"}
    assert not list(Path("runs").rglob("*.pt"))
    assert not project() and not project(seeds=7, workers=1) and contents() == before  # even its seconds


def test_another_seed_trains_beside_the_first(project):
    project()
    before = contents()
    assert project(1) and contents() == before
    assert contents("models/mgca/seeds/1")["decoder.safetensors"] != before["decoder.safetensors"]


def test_other_parameters_other_data_or_a_lost_decoder_train_again(project, texts):
    project()
    assert project(lr=0.02)
    assert project() and not project()
    Path("models/mgca/seeds/0/decoder.safetensors").unlink()
    assert project() and not project()
    features.create_cached(Path("data/features/train/texts.npy"), texts.shape)[:] = texts * 2
    assert project() and not project()


def test_a_killed_training_goes_on_and_counts_its_seconds(project, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(5, patch)
        with pytest.raises(Killed):
            project()
    assert not Path("models/mgca/seeds/0/training.json").exists()
    (path,) = Path("runs/checkpoints").rglob("*.pt")
    state = torch.load(path, weights_only=True) | {"seconds": 1000.0}
    torch.save(state, path)
    killed_at(STEPS - 4, monkeypatch)  # steps 4 to 8 are left: one more would raise
    assert project()
    assert 1000 <= json.loads(contents()["training.json"])["seconds"] < 2000


def test_an_epoch_that_ends_early_does_not_go_on_for_ever(cached, bank, texts, tmp_path):

    class Endless(Exception):
        pass

    class Vanishing(CachedImages):
        calls = 0

        def epoch(self, *arguments):
            self.calls += 1
            if self.calls > 10:
                raise Endless
            yield from list(super().epoch(*arguments))[: 2 if self.calls == 1 else 0]

    with pytest.raises(ValueError, match="ends . batches early"):
        train(SETTINGS, P.mgca, Vanishing(cached.array), bank, texts, tmp_path / "run.pt")


# ---- where batches come from


def epoch_of(images, seed=0, epoch=0, batch=6, skip=0):
    """[(rows, features)] of an epoch."""
    return [(rows, dense.numpy()) for rows, dense in images.epoch(seed, epoch, batch, skip, "cpu")]


class Colours:
    """Stands in for a CLIP: the dense features of an image are its colours, averaged over 2x2 pixels."""

    width, dense = 3, "maskclip"

    def encode_dense(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3)
        return torch.nn.functional.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 2)


def colour(number):
    return (10 * number, 255 - 10 * number, 7)


def write_shards(folder, good=(8, 7, 5)):
    """Shards of images of one colour each, a bad sample at the end of each shard."""
    numbers = iter(range(sum(good)))
    for shard, count in enumerate(good):
        with tarfile.open(folder / f"s{shard}.tar", "w") as tar:
            for key in [f"k{i}" for i in range(count)] + ["bad"]:
                out = io.BytesIO()
                size = (4, 4) if key == "bad" else (8, 10)  # one has to be cropped
                Image.new("RGB", size, (1, 2, 3) if key == "bad" else colour(next(numbers))).save(out, "PNG")
                for name, data in ((f"{key}.png", out.getvalue()), (f"{key}.txt", b"a cat")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    paths = shards.expand(str(folder / "s*.tar"))
    return paths, [key for path in paths for key, _, _ in shards.pairs(path, shards.Report())]


@pytest.fixture
def streamed(tmp_path):
    paths, keys = write_shards(tmp_path)
    assert len(keys) == 20
    return StreamedImages(Colours(), paths, keys, 8, 0)


@pytest.fixture(params=["cached", "streamed"])
def images(request, streamed):
    """20 pairs, whose features are the colour of their number."""
    if request.param == "streamed":
        return streamed
    return CachedImages(np.stack([np.broadcast_to(np.array(colour(n)).reshape(3, 1, 1), (3, 4, 4)) for n in range(20)]).astype(np.float16))


def test_an_epoch_has_full_batches_of_distinct_pairs_with_their_images(images):
    found = epoch_of(images)
    rows = np.concatenate([rows for rows, _ in found])
    assert len(found) == 3 and len(rows) == len(set(rows.tolist())) == 18 and set(rows.tolist()) <= set(range(20))
    for rows, dense in found:
        assert dense.shape == (6, 3, 4, 4) and dense.dtype == np.float32
        for row, feature in zip(rows, dense, strict=True):
            assert (feature == np.array(colour(row)).reshape(3, 1, 1)).all()


def test_the_order_follows_seed_and_epoch(images):
    def order(seed, epoch):
        return np.concatenate([rows for rows, _ in epoch_of(images, seed, epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(18))]
    assert len({tuple(one) for one in orders}) == 4


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_skipped_batches_are_the_first(images, skip):
    whole, rest = epoch_of(images, epoch=2), epoch_of(images, epoch=2, skip=skip)
    assert len(rest) == 3 - skip
    for (rows, dense), (again, dense_again) in zip(whole[skip:], rest, strict=True):
        assert np.array_equal(rows, again) and np.array_equal(dense, dense_again)


def test_the_first_pairs_are_the_first(images):
    first = images.first(9, "cpu")
    assert first.shape == (9, 3, 4, 4)
    assert [tuple(feature[:, 0, 0].int().tolist()) for feature in first] == [colour(n) for n in range(9)]


def test_worker_processes_give_every_pair_once_in_an_order_of_their_own_seed(streamed):
    streamed.workers = 2
    first, again = ([rows.tolist() for rows, _ in epoch_of(streamed, batch=5)] for _ in range(2))
    assert first == again
    assert sorted(row for rows in first for row in rows) == list(range(20))


def test_fingerprints_of_streams_tell_their_images_apart(streamed, bank, texts):

    def mark(**values):
        other = StreamedImages(**({name: getattr(streamed, name) for name in ("clip", "paths", "keys", "size", "workers")} | values))
        return fingerprint(SETTINGS, 0, P.mgca, bank, texts, other)

    assert mark() == mark(workers=3)
    assert mark() != mark(keys=streamed.keys[:-1])
    assert mark() != mark(size=16)


# ---- training on images


TINY = P.pretrain.model_copy(
    update={"size": 8, "patch": 4, "embed_dim": 16, "vision_width": 64, "vision_layers": 2, "text_width": 64, "text_layers": 1}
)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**pretraining.model_config(TINY))
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=pretraining.CONTEXT))


def test_training_encodes_images_at_each_step_and_survives_being_killed(clip, tmp_path, monkeypatch):
    paths, keys = write_shards(tmp_path)
    images = StreamedImages(clip, paths, keys, 8, 0)
    bank = TextBank.build([CAPTIONS[n % len(CAPTIONS)] for n in range(len(keys))], ["a photo of a {}."])
    run = {"settings": changed(batch=6, epochs=2.0), "mgca": P.mgca, "images": images, "bank": bank}
    run["texts"] = clip.encode_text(bank.texts).numpy()
    expected, history = train(**run, checkpoint=tmp_path / "whole.pt")
    assert len(history) == 6 and all(math.isfinite(row["loss"]) for row in history)
    killed_at(5, monkeypatch)  # in the second epoch, its first batch done
    with pytest.raises(Killed):
        train(**run, checkpoint=tmp_path / "run.pt")
    resumed, rows = train(**run, checkpoint=tmp_path / "run.pt")
    assert same(weights(resumed), weights(expected)) and rows == history


def prepared(folder, paths, keys, texts=()):
    """What `prepare` and `encode` leave in a folder, features of images aside."""
    TextBank.build(["a cat"] * len(keys), ["many {}."]).save(folder)
    (folder / "shards.txt").write_text("".join(f"{path}\n" for path in paths))
    (folder / "pairs.txt").write_text("".join(f"{key}\n" for key in keys))
    features.create_cached(folder / "texts.npy", (2, 3))[:] = 1


def test_images_are_cached_features_where_there_are_some(tmp_path):
    prepared(tmp_path, ["absent.tar"], ["absent/0"])
    array = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float16)
    features.create_cached(tmp_path / "pairs.npy", array.shape)[:] = array
    pairs = open_pairs(P.clip, 0, "cpu", tmp_path, tmp_path)
    assert isinstance(pairs.images, CachedImages) and np.array_equal(pairs.images.array, array)
    assert pairs.paths == ["absent.tar"] and list(pairs.bank.texts) == ["a cat", "many cat."] and pairs.texts.shape == (2, 3)


def test_images_are_streamed_where_none_are_cached(tmp_path, monkeypatch, clip):
    paths, keys = write_shards(tmp_path)
    prepared(tmp_path, paths, keys)
    monkeypatch.setattr(FrozenCLIP, "open", lambda settings, device: clip)
    images = open_pairs(P.clip.model_copy(update={"image_size": 8}), 0, "cpu", tmp_path, tmp_path).images
    assert isinstance(images, StreamedImages) and images.width == clip.width and images.keys == keys
    np.testing.assert_allclose(images.first(1, "cpu"), clip.encode_dense(np.full((1, 8, 8, 3), colour(0), np.uint8)), atol=1e-5)


def test_explain_draws_prompts_of_the_first_pairs(cached, bank, texts):
    drawn, found = training.explain(Decoder(WIDTH).eval(), Pairs(cached, bank, texts, []), P.mgca, count=5)
    assert len(drawn) == 5
    for row, text in enumerate(drawn):
        prompts = [template.format(noun) for noun in nouns(CAPTIONS[row]) for template in bank.templates]
        assert text in (prompts or [CAPTIONS[row]])
    assert found["object"].shape == found["similarity"].shape == found["region"].shape == (5, 8, 8)
    assert (found["object"].flatten(1).sum(1) == round(P.mgca.alpha * 64)).all()
    # an untrained decoder repeats each of the 4x4 features, and similarity is the plain product with the text
    text = torch.from_numpy(texts[bank.texts.index(drawn[2])]).float()
    expected = torch.einsum("dhw,d->hw", torch.from_numpy(cached.array[2]).float(), text).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(found["similarity"][2], expected)
