"""A user's own shards and folder benchmark through the pipeline, images encoded at each step. In a file of its own, for another worker."""

import io
import json
import shutil
import tarfile

from test_pipeline import change, copy_project, run, tiny

from ovseg import params
from ovseg.world import scenes


def test_own_shards_and_a_folder_benchmark_without_a_cache_of_images(tmp_path):
    project, world, street = tmp_path / "project", tmp_path / "world", tmp_path / "project/street"
    project.mkdir()
    copy_project(project, tiny)
    scenes.render_shards(params.load(path=project / "params.yaml").scenes, world)
    for part in ("images", "labels"):
        (street / part).mkdir(parents=True)
    with tarfile.open(world / "benchmark-00000.tar") as tar:
        for member in tar:
            key, extension = member.name.split(".", 1)
            if extension in ("jpg", "scenes.png"):
                part, suffix = ("images", "jpg") if extension == "jpg" else ("labels", "png")
                (street / part / f"{key}.{suffix}").write_bytes(tar.extractfile(member).read())
    shutil.copy(world / "scenes.txt", street / "classes.txt")
    shutil.copy(world / "train-00000.tar", project / "pairs.tar")
    with tarfile.open(project / "pairs.tar", "a") as tar:  # one sample that cannot be used
        for extension, data in (("jpg", b"no picture"), ("txt", b"a cat")):
            member = tarfile.TarInfo(f"broken.{extension}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    def own(values):
        values["data"]["shards"] = "pairs.tar"
        values["benchmarks"] = {"street": {"folder": "street"}}
        values["clip"]["cache_images"] = False
        values["ablations"]["retrieved"] = []
        values["ablations"]["trained"] = ["default"]  # the pairs have no label maps

    change(project, own)
    run(project, "dvc", "repro", "run@default")
    prepared = json.loads((project / "results/prepare.json").read_text())
    assert prepared["pairs"] == 64 and not prepared["rendered"] and prepared["skipped"] == {"broken image": 1}
    assert not (project / "data/features/train/pairs.npy").exists()
    result = json.loads((project / "results/runs/default.json").read_text())
    assert set(result["miou"]) == {"street"} and len(result["seeds"][0]["iou"]["street"]["pixel"]) == len(scenes.CLASSES)
