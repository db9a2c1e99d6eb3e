"""The Space: its API over HTTP, and its page in a real Chromium. Run by `make test-e2e`."""

import http.client
import json
import math
import os
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tifffile
import torch
from conftest import ROOT
from PIL import Image
from space_server import browser, dehazed, micrograph, pipe, space, started  # noqa: F401

from haze_pipeline.evaluation.baselines import richardson_lucy, rolling_ball
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.loading import Device, DType, place_pipeline
from haze_pipeline.models.latent_restoration import LatentRestoration
from haze_pipeline.pipeline_latent_restoration import LatentRestorationPipeline
from haze_pipeline.presets import Preset
from haze_pipeline.reliability.assessment import assess
from haze_pipeline.simulation.optics import Optics
from haze_pipeline.simulation.simulated_pairs import pair_generator, simulate_series


pytestmark = pytest.mark.e2e

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402


def test_a_plane_of_a_stack_is_dehazed_as_by_the_pipeline(space, pipe, tmp_path):
    image = micrograph(2, 2)
    source = tmp_path / "stack.ome.tif"
    write_ome_tiff(source, Micrograph(image, "ZCYX", (0.1, 0.1), z_step=0.3, channel_names=["actin", "DNA"]))
    arguments = {"plane": 2, "channel": 1, "preset": "balanced", "members": 3, "seed": 5}
    job = space.client().submit(handle_file(source), **arguments, api_name="/dehaze")
    files, verdict, pictures, contrast, uncertainty, note, samples, *_ = job.result(timeout=120)
    expected = dehazed(pipe, image[1, 0], Preset.balanced, 3, 5)
    result, deviation = (read_micrograph(file) for file in files)
    np.testing.assert_array_equal(result.data, expected.prediction)
    np.testing.assert_array_equal(deviation.data, expected.uncertainty)
    assert (result.axes, result.pixel_size, result.z_step, result.channel_names) == ("YX", (0.1, 0.1), None, ["actin"])
    for key, value in {**arguments, "ensemble_size": 3, "num_inference_steps": 6, "source": "stack.ome.tif"}.items():
        assert result.provenance.get(key, value) == value
    assessment = assess(pipe, image[1, 0], expected, 0.1, 5)
    assert all(warning.rstrip(".") in verdict for warning in assessment.warnings)
    assert "black to white" in contrast and len(pictures) == 2
    assert uncertainty["value"]["plot"].startswith("data:image/") and "Not calibrated" in note
    assert [sample["caption"] for sample in samples["value"]] == [f"sample {n} of 3" for n in (1, 2, 3)]
    live = [output[8] for output in job.outputs()[:-1] if "label" in output[8]]
    assert live and all(Path(state["value"]).is_file() for state in live), "there is no live preview"
    assert "step" in live[0]["label"]
    # A profile of the dehazed plane, although the sliders may have moved. A profile of another file is refused.
    plot = space.client().predict(handle_file(source), [handle_file(file) for file in files], 25, api_name="/profile")
    assert plot["plot"].startswith("data:image/")
    tifffile.imwrite(tmp_path / "other.tif", image[0, 0, :50])
    with pytest.raises(AppError, match=r"no plane|planes 1 to 1|belongs to another file"):
        space.client().predict(handle_file(tmp_path / "other.tif"), [handle_file(files[0])], 25, api_name="/profile")


@pytest.mark.parametrize("strength", [0, 0.4])
def test_strength_removes_a_fraction_of_the_haze(space, pipe, tmp_path, strength):
    image = micrograph(1)[0]
    tifffile.imwrite(tmp_path / "image.tif", image)
    source, arguments = handle_file(tmp_path / "image.tif"), {"preset": "balanced", "members": 2}
    files, _, _, _, _, note, *_ = space.client().predict(source, **arguments, strength=strength, api_name="/dehaze")
    result, deviation = (read_micrograph(file) for file in files)
    expected = dehazed(pipe, image, Preset.balanced, 2, strength=strength)
    np.testing.assert_array_equal(result.data, expected.prediction)
    np.testing.assert_array_equal(deviation.data, expected.uncertainty)
    assert result.provenance["strength"] == strength
    assert "does not include the haze that remains" in note
    if strength == 0:
        np.testing.assert_allclose(result.data, image, rtol=1e-5)


def two_images(path: Path) -> list[np.ndarray]:
    """Write a file of two images: a stack, and a smaller plane."""
    images = [micrograph(2, size=64), micrograph(1, size=48, seed=1)[0]]
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(images[0], metadata={"axes": "ZYX"})
        file.write(images[1], metadata={"axes": "YX"})
    return images


def test_each_image_of_a_file_can_be_chosen(space, pipe, tmp_path):
    source = tmp_path / "two.ome.tif"
    first, second = two_images(source)
    client = space.client()
    for arguments, image in (({"plane": 2}, first[1]), ({"image_number": 2}, second)):
        files, *_ = client.predict(handle_file(source), **arguments, api_name="/dehaze")
        result = read_micrograph(files[0])
        np.testing.assert_array_equal(result.data, dehazed(pipe, image, Preset.fast).prediction)
        assert result.provenance["image_number"] == arguments.get("image_number", 1)
        # The profile is that of the image that was dehazed.
        plot = client.predict(handle_file(source), [handle_file(files[0])], 25, api_name="/profile")
        assert plot["plot"].startswith("data:image/")
    *_, files = client.predict(handle_file(source), image_number=2, api_name="/compare")
    ours = read_micrograph(files[0])
    np.testing.assert_array_equal(ours.data, dehazed(pipe, second, Preset.fast).prediction)
    assert ours.provenance["image_number"] == 2
    for arguments, message in (
        ({"image_number": 3}, r"`two.ome.tif` has no image 3: choose from images 1 to 2"),
        ({"image_number": 2, "plane": 2}, "planes 1 to 1"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(handle_file(source), **arguments, api_name="/dehaze")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_any_bit_depth(space, pipe, tmp_path, dtype):
    image = (micrograph(1, size=48)[0] // 64).astype(dtype)
    tifffile.imwrite(tmp_path / "image.tif", image)
    files, *_ = space.client().predict(handle_file(tmp_path / "image.tif"), api_name="/dehaze")
    expected = dehazed(pipe, image, Preset.fast)
    np.testing.assert_array_equal(read_micrograph(files[0]).data, expected.prediction)


def test_twenty_at_once_all_get_their_own_result(space, pipe, tmp_path):
    number = 20
    images = micrograph(number, size=64, seed=1)
    for index, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"user{index:02}.tif", image)
    clients = [space.client() for _ in range(number)]  # each in its own session
    server = psutil.Process(space.process.pid)
    before = peak = server.memory_info().rss

    def submit(index):
        source = handle_file(tmp_path / f"user{index:02}.tif")
        return clients[index].submit(source, preset="balanced", members=2, seed=index, api_name="/dehaze")

    with ThreadPoolExecutor(number) as pool:
        jobs = list(pool.map(submit, range(number)))
    ranks = set()
    while not all(job.done() for job in jobs):
        ranks |= {job.status().rank for job in jobs}
        peak = max(peak, server.memory_info().rss)
        time.sleep(0.05)
    paths = set()
    for index, (job, image) in enumerate(zip(jobs, images, strict=True)):
        files, *_ = job.result()
        assert [Path(file).name for file in files] == [
            f"user{index:02}_clear.ome.tif",
            f"user{index:02}_clear_uncertainty.ome.tif",
        ]
        expected = dehazed(pipe, image, Preset.balanced, 2, index)
        np.testing.assert_array_equal(read_micrograph(files[0]).data, expected.prediction)
        paths |= set(files)
    assert len(paths) == 2 * number
    waited = {rank for rank in ranks if rank is not None}
    assert len(waited) >= number // 2, f"reported positions: {sorted(waited)}"
    print(f"memory rose by {(peak - before) / 2**20:.0f} MB, positions {sorted(waited)}")
    assert peak - before < 500 * 2**20


def test_cancelling_stops_the_network_and_leaves_nothing_behind(space, pipe, tmp_path):
    image = micrograph(1, size=256)[0]
    tifffile.imwrite(tmp_path / "image.tif", image)
    client = space.client()
    started_at = time.monotonic()
    job = client.submit(handle_file(tmp_path / "image.tif"), preset="quality", members=50, api_name="/dehaze")
    while not (labels := [output[8]["label"] for output in job.outputs() if "label" in output[8]]):
        assert time.monotonic() < started_at + 60
        time.sleep(0.05)
    label = labels[0]  # Sampling: step 1 of 76
    step, of, steps = label.split()[-3:]
    assert of == "of" and int(step) < int(steps) // 4
    job.cancel()
    cancelled_at = time.monotonic()
    files, *_ = space.client().predict(handle_file(tmp_path / "image.tif"), api_name="/dehaze")
    # To its end, the sampling would have taken steps / step times as long.
    assert time.monotonic() - cancelled_at < (cancelled_at - started_at) * int(steps) / int(step) / 2
    np.testing.assert_array_equal(
        read_micrograph(files[0]).data,
        dehazed(pipe, image, Preset.fast).prediction,
    )


def bomb(path: Path):
    """A TIFF of 64 × 64 pixels whose strip unpacks to 512 MB."""
    tifffile.imwrite(path, np.zeros((64, 64), np.uint16), compression="zlib", rowsperstrip=64)
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(bytes(2**20)) for _ in range(512)), packer.flush()])
    end = path.stat().st_size
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tags = tif.pages.first.tags
        tags["StripOffsets"].overwrite(end)
        tags["StripByteCounts"].overwrite(len(packed))
    with path.open("ab") as file:
        file.write(packed)


def deep(path: Path):
    """A small TIFF whose header claims 8 GiB of pixels."""
    tifffile.imwrite(path, np.zeros((64, 64), np.uint16), compression="zlib", rowsperstrip=64)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags["ImageLength"].overwrite(2**26)


BAD = {
    "garbage.tif": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a TIFF file"),
    "damaged.tif": (lambda path: path.write_bytes(b"II*\0" + np.random.default_rng(0).bytes(5000)), "damaged"),
    "empty.tif": (lambda path: path.write_bytes(b""), "empty"),
    "photo.tif": (lambda path: tifffile.imwrite(path, np.zeros((20, 20, 3), np.uint8), photometric="rgb"), "colour"),
    "infinite.tif": (lambda path: tifffile.imwrite(path, np.full((20, 20), np.inf, np.float32)), "finite"),
    "wide.tif": (lambda path: tifffile.imwrite(path, np.zeros((64, 2**17), np.uint8), compression="zlib"), "crop it"),
    "deep.tif": (deep, "unpacks to 8192 MB"),
    "bomb.tif": (bomb, "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(space, tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    server = psutil.Process(space.process.pid)
    before = server.memory_info().rss
    with pytest.raises(AppError) as error:
        space.client().predict(handle_file(tmp_path / name), api_name="/dehaze")
    assert message in str(error.value)
    assert str(space.folder) not in str(error.value) and "\n" not in str(error.value)
    if name != "infinite.tif":  # this error is about the pixels, not about the file
        assert name in str(error.value)
    assert server.memory_info().rss - before < 100 * 2**20


def test_arguments_out_of_range_get_one_sentence(space, tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", micrograph(1, size=48)[0])
    tifffile.imwrite(tmp_path / "large.tif", np.zeros((2048, 2048), np.uint8), compression="zlib")
    for name, arguments, message in (
        ("image.tif", {"plane": 2}, "planes 1 to 1"),
        ("image.tif", {"channel": 0}, "less than minimum"),
        ("image.tif", {"members": 51}, "greater than maximum"),
        ("image.tif", {"seed": -1}, "less than minimum"),
        ("image.tif", {"strength": 1.5}, "greater than maximum"),
        ("image.tif", {"image_number": 2}, "has no image 2"),
        ("image.tif", {"preset": "best"}, "not in the list of choices"),
        ("image.tif", {"checkpoint": "/etc"}, "not in the list of choices"),
        ("large.tif", {"members": 9}, "choose at most 8"),
    ):
        with pytest.raises((AppError, ValueError), match=message):
            space.client().predict(handle_file(tmp_path / name), **arguments, api_name="/dehaze")
    with pytest.raises(AppError, match="choose a TIFF file"):
        space.client().predict(None, api_name="/dehaze")


def test_200_megabytes_are_refused_while_they_are_sent(space, tmp_path):
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    with large.open("rb") as file:
        response = httpx.post(f"{space.url}/gradio_api/upload", files={"files": ("large.tif", file)}, timeout=120)
    assert response.status_code == 413 and "maximum allowed size" in response.text
    assert all(path.stat().st_size < 2**27 for path in space.files)


def call(space, path: str) -> str:
    """The answer of the endpoint to a path on the server instead of an upload."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = {"data": [file, 1, 1, "fast", 1, 0, 1, 1, "in the package", False]}
    response = httpx.post(f"{space.url}/gradio_api/call/dehaze", json=data, timeout=60)
    if response.status_code != 200:
        return response.text
    return httpx.get(f"{space.url}/gradio_api/call/dehaze/{response.json()['event_id']}", timeout=60).text


def test_paths_on_the_server_are_refused(space, tmp_path):
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, micrograph(1, size=48)[0])
    app = ROOT / "spaces" / "haze-matching" / "app.py"
    [inside] = (space.folder / "tmp").glob("haze-space-*")
    urls = [f"{space.url}/gradio_api/info", secret.as_uri(), "http://169.254.169.254/latest"]
    for path in ("/etc/passwd", "../../../../etc/passwd", str(secret), str(app), f"{inside}/../../log", "", *urls):
        answer = call(space, path)
        assert answer.startswith("event: error"), (path, answer)
        message = json.loads(answer.splitlines()[1].removeprefix("data: "))["error"]
        assert message and len(message) < 300, (path, answer)
    for path in (secret, app, "/etc/passwd", f"{inside}/../../log", inside, space.folder / "log"):
        assert httpx.get(f"{space.url}/gradio_api/file={path}").status_code in (403, 404), path
    # An upload stays in its folder, for any name.
    for name in ("../../evil.tif", "/tmp/evil.tif", "..\\evil.tif", "a\0b.tif"):
        body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\nII*\0\r\n--x--\r\n'
        connection = http.client.HTTPConnection(space.url.removeprefix("http://"))
        connection.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
        response = connection.getresponse()
        answer = response.read().decode()
        if response.status == 200:
            for path in json.loads(answer):
                assert Path(path).resolve().is_relative_to(inside), path
        assert not list(space.folder.glob("*evil*")) and not Path("/tmp/evil.tif").exists()


def test_simulation_and_comparison_give_the_results_of_the_package(space, pipe, tmp_path):
    client = space.client()
    optics = Optics(1.2, 0.52, 0.488, 1.33, 0.1)
    pair = simulate_series(256, pair_generator(9, 0), optics, (2, math.inf))[0]
    _, _, (hazy, clear) = client.predict(9, 2, api_name="/simulate")
    hazy, clear = read_micrograph(hazy), read_micrograph(clear)
    assert hazy.data.dtype == np.uint16 and hazy.pixel_size == (0.1, 0.1)
    np.testing.assert_array_equal(hazy.data, pair.hazy.numpy())
    np.testing.assert_array_equal(clear.data, pair.clear.numpy())
    pictures, score = client.predict(9, 2, api_name="/dehaze_simulated")
    assert len(pictures) == 2 and "dB after" in score

    image = micrograph(1, size=64)[0]
    tifffile.imwrite(tmp_path / "image.tif", image)
    source = handle_file(tmp_path / "image.tif")
    *_, files = client.predict(source, ball=12, airy_radius=2, iterations=5, api_name="/compare")
    ours, ball, lucy = (read_micrograph(file).data for file in files)
    np.testing.assert_array_equal(ours, dehazed(pipe, image, Preset.fast).prediction)
    np.testing.assert_array_equal(ball, rolling_ball(image, 12).prediction)
    np.testing.assert_array_equal(lucy, richardson_lucy(image, 2, 5).prediction)


def test_a_plane_is_restored_step_by_step_in_latents(browser, tmp_path):
    torch.manual_seed(0)
    network = LatentRestoration(
        {"num_latent_groups": 2, "latent_channels": 4, "num_features": 8, "num_blocks": 1}, 3, (8, 8)
    )
    pipe = LatentRestorationPipeline(network.eval(), haze_fractions=[0.2, 0.5, 1.0])
    pipe.save_pretrained(tmp_path / "latent")
    image = micrograph(2, size=96)
    source = tmp_path / "stack.ome.tif"
    write_ome_tiff(source, Micrograph(image, "ZYX", (0.1, 0.1), z_step=0.3))
    (tmp_path / "space").mkdir()
    with started(tmp_path / "space", HAZE_LATENT_MODEL=str(tmp_path / "latent")) as space:
        gallery, contrast, steps = space.client().predict(
            handle_file(source), plane=2, variant="direct", api_name="/restore_in_latents"
        )
        assert [each["caption"] for each in gallery] == ["input", "step 1", "step 2", "step 3"]
        made = read_micrograph(steps)
        expected = place_pipeline(pipe, Device.auto, DType.auto)(image[1], "direct", output_trajectory=True)
        np.testing.assert_array_equal(made.data, expected.trajectory)
        assert made.axes == "TYX" and "black to white" in contrast

        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(space.url)
        page.locator("input[type=file]").first.set_input_files(source)
        page.get_by_role("img").first.wait_for()
        page.get_by_role("tab", name="Step by step").click()
        page.get_by_role("button", name="Restore").click()
        page.get_by_text("step 3").first.wait_for()
        page.screenshot(path=os.environ.get("HAZE_SCREENSHOTS", str(tmp_path)) + "/latents.png", full_page=True)
        assert f'File "{ROOT / "spaces"}' not in space.log, space.log


def test_the_examples_in_its_documents_run(space, tmp_path, monkeypatch):
    folder = ROOT / "spaces" / "haze-matching"
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("cells.tif", micrograph(1, size=48)[0])
    [client] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    shown = {}
    exec(client.replace("http://127.0.0.1:7860", space.url), shown)
    assert read_micrograph(shown["files"][0]).data.shape == (48, 48) and "trusted" in shown["verdict"]
    for example in re.findall(r"```python\n(.*?)```", (folder / "examples" / "README.md").read_text(), re.DOTALL):
        exec(example, {})
    photographs = [
        np.asarray(Image.open(each / "photograph.png")).astype(int) for each in (Path(), folder / "examples")
    ]
    np.testing.assert_allclose(*photographs, atol=1)
    made, shipped = (
        read_micrograph(path) for path in ("two_channels.ome.tif", folder / "examples/two_channels.ome.tif")
    )
    assert (made.axes, made.channel_names) == (shipped.axes, shipped.channel_names)
    assert (made.data == shipped.data).mean() > 0.99  # rounding may change the simulated camera noise


def test_files_expire(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", micrograph(1, size=48)[0])
    with started(tmp_path, HAZE_EXPIRY="6") as space:
        files, *_ = Client(space.url, verbose=False, download_files=False).predict(
            handle_file(tmp_path / "image.tif"), api_name="/dehaze"
        )
        assert httpx.get(f"{space.url}/gradio_api/file={files[0]['path']}").status_code == 200
        examples = {path.name for path in (ROOT / "spaces" / "haze-matching" / "examples").glob("*.[tpo]*")}
        examples.remove("photograph.png")  # its tab is not there
        deadline = time.monotonic() + 30
        while {path.name for path in space.files} != examples:
            assert time.monotonic() < deadline, space.files
            time.sleep(0.5)
        assert httpx.get(f"{space.url}/gradio_api/file={files[0]['path']}").status_code in (403, 404)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page(space, pipe, browser, tmp_path, width):
    image = micrograph(1, size=256, seed=9)[0]
    source = tmp_path / "cells.ome.tif"
    write_ome_tiff(source, Micrograph(image, "YX", (0.1, 0.1)))
    page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True)
    page.set_default_timeout(60_000)
    complaints, outside = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda response: complaints.append(response.url) if response.status >= 400 else None)
    page.on(
        "request", lambda r: outside.append(r.url) if not r.url.startswith((space.url, "data:", "blob:")) else None
    )

    def look(name: str):
        page.wait_for_timeout(500)
        page.screenshot(
            path=os.environ.get("HAZE_SCREENSHOTS", str(tmp_path)) + f"/{width}_{name}.png", full_page=True
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"

    # 1. A finished result is shown, and the limit is stated before anything is uploaded.
    page.goto(space.url)
    page.get_by_text("Example: the centre of the filaments").wait_for()
    look("opening")
    page.get_by_text("at most 100 MB, planes of at most 2048 × 2048").wait_for()
    page.locator("input[type=file]").first.set_input_files(source)
    page.get_by_text("YX 256 × 256").or_(page.locator("textarea")).first.wait_for()
    page.get_by_role("img").first.wait_for()
    look("chosen")

    # 2. Dehaze, and read the file that is offered.
    page.get_by_label("balanced").check()
    members = page.get_by_label("number input for Members")
    page.wait_for_function("e => e.value === '8'", arg=members.element_handle())
    page.get_by_role("button", name="Dehaze", exact=True).click()
    page.get_by_text("Can it be trusted?").wait_for()
    page.get_by_text("Calibrated on average").wait_for()
    expected = dehazed(pipe, image, Preset.balanced, 8, 0)
    for name, data in (("cells_clear", expected.prediction), ("cells_clear_uncertainty", expected.uncertainty)):
        with page.expect_download() as download:
            page.locator(f'a[download="{name}.ome.tif"]').first.click()
        download.value.save_as(tmp_path / f"{name}.ome.tif")
        result = read_micrograph(tmp_path / f"{name}.ome.tif")
        np.testing.assert_array_equal(result.data, data)
        assert result.data.dtype == np.float32 and result.pixel_size == (0.1, 0.1)

    # 3. Move the slider between input and result.
    handle = page.locator("#slider .icon-wrap")
    handle.hover()
    before = handle.bounding_box()
    page.mouse.down()
    page.mouse.move(before["x"] + 90, before["y"] + before["height"] / 2, steps=5)
    page.mouse.up()
    assert handle.bounding_box()["x"] > before["x"] + 30
    shown = page.locator("#slider img").evaluate_all("images => images.map(image => image.src)")
    page.get_by_label("Same contrast").uncheck()
    page.wait_for_function(
        "old => [...document.querySelectorAll('#slider img')].some(image => !old.includes(image.src))", arg=shown
    )
    look("uncertainty")

    # 4. Open every tab, show several samples, and move the line of the profile.
    page.get_by_role("tab", name="Samples").click()
    page.locator("caption", has_text="sample 1 of 8").wait_for()
    page.locator(".thumbnail-item").nth(1).locator("visible=true").click()
    page.locator("caption", has_text="sample 2 of 8").wait_for()
    look("samples")
    page.get_by_role("tab", name="Profile").click()
    plot = page.locator("#profile img")
    plot.wait_for()
    first = plot.get_attribute("src")
    line = page.get_by_label("number input for Line, % of the height")
    line.fill("20")
    line.press("Enter")
    page.wait_for_function("([e, old]) => e.src !== old", arg=[plot.element_handle(), first])
    look("profile")
    page.get_by_role("tab", name="Haze by pinhole").click()
    page.get_by_text("in-focus signal 0").first.wait_for()
    page.get_by_role("button", name="Dehaze this").click()
    page.get_by_text("dB after").wait_for()
    look("pinhole")
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("richardson lucy").first.wait_for()
    look("compare")
    assert not complaints and not outside, (complaints, outside)

    # 5. A click on an example dehazes it. Then dehaze it with another preset, watch the sampling, and cancel it.
    page.get_by_role("tab", name="Dehaze").first.click()
    page.get_by_label("Clear").first.click()
    page.get_by_text("Example: the centre of the filaments").wait_for()
    page.get_by_text("Cell borders and vesicles").click()
    page.get_by_label("number input for Channel, 1 to 2").wait_for()
    page.get_by_text("Can it be trusted?").wait_for()
    page.locator('a[download="two_channels_clear.ome.tif"]').first.wait_for()
    look("example")
    page.get_by_label("quality").check()
    page.wait_for_function("e => e.value === '50'", arg=members.element_handle())
    page.get_by_role("button", name="Dehaze", exact=True).click()
    page.get_by_text("Sampling: step").wait_for()
    look("sampling")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Sampling: step").wait_for(state="hidden")
    assert not complaints and not outside, (complaints, outside)

    # 6. Choose the second image of a file that holds two. It has no planes to choose from.
    two_images(tmp_path / "two.ome.tif")
    page.get_by_label("Clear").first.click()
    page.get_by_text("Example: the centre of the filaments").wait_for()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "two.ome.tif")
    page.get_by_label("number input for Plane, 1 to 2").wait_for()
    number = page.get_by_label("number input for Image of the file, 1 to 2")
    number.fill("2")
    number.blur()
    page.get_by_label("number input for Plane, 1 to 2").wait_for(state="hidden")
    page.wait_for_function(
        "[...document.querySelectorAll('textarea, input')].some(e => e.value.startsWith('YX 48 × 48'))"
    )
    assert number.input_value() == "2"
    look("second_image")
    page.get_by_label("number input for Strength").fill("0.5")
    page.get_by_label("fast").check()
    page.wait_for_function("e => e.value !== '50'", arg=members.element_handle())
    page.get_by_role("button", name="Dehaze", exact=True).click()
    page.get_by_text("Can it be trusted?").wait_for()
    with page.expect_download() as download:
        page.locator('a[download="two_clear.ome.tif"]').first.click()
    download.value.save_as(tmp_path / "two_clear.ome.tif")
    provenance = read_micrograph(tmp_path / "two_clear.ome.tif").provenance
    assert (provenance["image_number"], provenance["strength"]) == (2, 0.5)
    look("half_strength")
    assert not complaints and not outside, (complaints, outside)

    # 7. Files that cannot be dehazed cause error toasts.
    (tmp_path / "text.tif").write_text("no image")
    with (tmp_path / "large.tif").open("wb") as file:
        file.truncate(200 * 2**20)
    for name, message in (("text", "`text.tif` is not a TIFF file"), ("large", "larger than 100 MB")):
        page.get_by_label("Clear").first.click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / f"{name}.tif")
        page.get_by_text(message).wait_for()
        look(f"toast_{name}")
    assert not outside
    page.close()
