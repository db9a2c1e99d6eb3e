"""The Space: stacks, zipped OME-Zarr, the choice of checkpoints, and its tools for agents. Run by `make test-e2e`."""

import asyncio
import os
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from space_server import browser, dehazed, micrograph, pipe, space, started  # noqa: F401

from haze_pipeline.batch.file_dehazing import FileDehazer
from haze_pipeline.batch.tasks import Outputs
from haze_pipeline.io.micrograph_files import Micrograph, read_micrograph, write_ome_tiff
from haze_pipeline.io.ome_zarr import OmeZarrWriter
from haze_pipeline.presets import Preset, with_preset


pytestmark = pytest.mark.e2e

from gradio_client import handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402
from mcp import ClientSession  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402


def write_stack(path, num_planes: int = 3, size: int = 64) -> Micrograph:
    stack = Micrograph(micrograph(num_planes, size=size), "ZYX", (0.1, 0.1), z_step=0.3)
    write_ome_tiff(path, stack)
    return stack


def test_a_stack_is_dehazed_as_by_the_command_line(space, pipe, tmp_path):
    source = tmp_path / "stack.ome.tif"
    write_stack(source)
    client = space.client()
    arguments = {"preset": "balanced", "members": 2, "all_planes": True, "plane": 2}
    files, verdict, *_ = client.predict(handle_file(source), **arguments, api_name="/dehaze")
    result, deviation = (read_micrograph(file) for file in files)
    prepared, steps, members = with_preset(pipe, Preset.balanced, ensemble_size=2)
    outputs = Outputs(tmp_path / "clear.ome.tif", tmp_path / "deviation.ome.tif")
    FileDehazer(prepared, steps, members, output_dtype="float32")(source, outputs)
    np.testing.assert_allclose(result.data, read_micrograph(outputs.prediction).data, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(deviation.data, read_micrograph(outputs.uncertainty).data, rtol=1e-3, atol=1e-2)
    assert (result.axes, result.pixel_size, result.z_step) == ("ZYX", (0.1, 0.1), 0.3)
    assert "(planes 1, 2 and 3 were checked)" in verdict
    plot = client.predict(handle_file(source), [handle_file(file) for file in files], 25, 3, api_name="/profile")
    assert plot["plot"].startswith("data:image/")
    with pytest.raises(AppError, match="greater than maximum value 3"):
        client.predict(handle_file(source), [handle_file(file) for file in files], 25, 4, api_name="/profile")


def test_a_stack_that_is_too_large_is_refused(space, tmp_path):
    large = np.zeros((9, 2048, 2048), np.uint8)
    write_ome_tiff(tmp_path / "large.ome.tif", Micrograph(large, "ZYX"))
    with pytest.raises(AppError, match="9 planes of 2048 × 2048 pixels are too many for 1 members"):
        space.client().predict(handle_file(tmp_path / "large.ome.tif"), members=1, all_planes=True, api_name="/dehaze")


def test_a_zipped_ome_zarr_is_dehazed(space, pipe, tmp_path):
    image = micrograph(2, size=64)
    with OmeZarrWriter(tmp_path / "cells.zarr", Micrograph(image, "ZYX", (0.1, 0.1)), image.shape, image.dtype) as out:
        for plane in range(2):
            out.write((plane,), image[plane])
    with zipfile.ZipFile(tmp_path / "cells.zarr.zip", "w") as archive:
        for path in (tmp_path / "cells.zarr").rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    source = handle_file(tmp_path / "cells.zarr.zip")
    files, *_ = space.client().predict(source, plane=2, api_name="/dehaze")
    result = read_micrograph(files[0])
    np.testing.assert_array_equal(result.data, dehazed(pipe, image[1], Preset.fast).prediction)
    assert result.pixel_size == (0.1, 0.1) and files[0].endswith("cells_clear.ome.tif")
    with pytest.raises(AppError, match=r"`cells.zarr.zip` has no image 2"):
        space.client().predict(source, image_number=2, api_name="/dehaze")


def test_a_checkpoint_can_be_chosen(pipe, tmp_path):
    with torch.no_grad():  # another checkpoint, which gives other results
        for parameter in pipe.unet.conv_out.parameters():
            parameter *= 0.5
    pipe.save_pretrained(tmp_path / "halved")
    expected = dehazed(pipe, image := micrograph(1, size=48)[0], Preset.fast).prediction
    with torch.no_grad():
        for parameter in pipe.unet.conv_out.parameters():
            parameter *= 2
    write_ome_tiff(tmp_path / "image.ome.tif", Micrograph(image, "YX"))
    (tmp_path / "space").mkdir()
    checkpoints = f"{tmp_path / 'halved'}, {tmp_path / 'missing'}"
    with started(tmp_path / "space", HAZE_CHECKPOINTS=checkpoints) as space:
        source, client = handle_file(tmp_path / "image.ome.tif"), space.client()
        files, *_ = client.predict(source, checkpoint="halved", api_name="/dehaze")
        np.testing.assert_array_equal(read_micrograph(files[0]).data, expected)
        assert read_micrograph(files[0]).provenance["checkpoint"] == "halved"
        files, *_ = client.predict(source, api_name="/dehaze")
        np.testing.assert_array_equal(read_micrograph(files[0]).data, dehazed(pipe, image, Preset.fast).prediction)
        with pytest.raises(AppError, match="does not exist"):
            client.predict(source, checkpoint=str(tmp_path / "missing"), api_name="/dehaze")


async def call_tools(url):
    """What a client of the Model Context Protocol sees: the tools by name, and the answer of one of them."""
    address = f"{url}/gradio_api/mcp/"
    async with streamable_http_client(address) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        return tools, await session.call_tool("dehaze_simulated", {"specimen": 3})


def test_agents_can_call_the_tools(space):
    # `dehaze` takes files from public addresses only, which this test has not; `dehaze_simulated` makes its own image.
    tools, answer = asyncio.run(call_tools(space.url))
    dehaze = tools["dehaze"]
    assert "out-of-focus haze" in dehaze.description
    properties = dehaze.inputSchema["properties"]
    assert set(properties) >= {"path", "plane", "channel", "preset", "members", "strength", "all_planes"}
    assert all(properties[name]["description"] for name in ("path", "preset", "strength"))
    _, expected = space.client().predict(3, api_name="/dehaze_simulated")
    assert not answer.isError and expected in answer.content[-1].text


@pytest.mark.parametrize("width", [1280, 390])
def test_planes_of_a_dehazed_stack_are_flipped(space, browser, tmp_path, width):
    source = tmp_path / "stack.ome.tif"
    write_stack(source)
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(space.url)
    page.locator("input[type=file]").first.set_input_files(source)
    assert page.get_by_label("All planes").is_checked()
    page.get_by_role("button", name="Dehaze", exact=True).click()
    page.get_by_text("Can it be trusted?").wait_for()
    number = page.get_by_label("number input for Plane of the result, 1 to 3")
    assert number.input_value() == "1"
    shown = page.locator("#slider img").evaluate_all("images => images.map(image => image.src)")
    number.fill("3")
    number.press("Enter")
    page.wait_for_function(
        "old => [...document.querySelectorAll('#slider img')].every(image => !old.includes(image.src))", arg=shown
    )
    page.screenshot(path=os.environ.get("HAZE_SCREENSHOTS", str(tmp_path)) + f"/{width}_stack.png", full_page=True)
    assert f'File "{ROOT / "spaces"}' not in space.log, space.log
