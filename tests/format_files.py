"""
Small files of the formats that microscopes write, with known contents: by tifffile and zarr where these can write
them, else tag by tag after the descriptions of the formats that tifffile follows.

Every writer takes a path and the data `[..., Y, X]`, and notes the same facts, as far as its format has a place for
them: pixels of 0.2 µm, planes 0.5 µm apart, frames every 2 s, the channels "DNA" (blue) and "actin" (green), and the
place (1200, 350, 42) µm of the stage.
"""

import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile


PIXEL, STEP, INTERVAL = 0.2, 0.5, 2.0  # µm, µm, s
NAMES, COLORS = ["DNA", "actin"], ["0000FF", "00FF00"]
PLACE = (1200.0, 350.0, 42.0)  # µm
OBJECTIVE = "Plan-Apochromat 63x/1.40 Oil DIC M27"
ASCII, SHORT, LONG, RATIONAL, UNDEFINED, DOUBLE = 2, 3, 4, 5, 7, 12
CODES = {ASCII: "s", SHORT: "H", LONG: "I", UNDEFINED: "s", DOUBLE: "d"}


class RawTiff:
    """
    A little-endian TIFF, or BigTIFF, that is put together tag by tag. `head` stands between its header and everything
    else.
    """

    def __init__(self, head: bytes = b"", big: bool = False):
        self.content = bytearray((struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else b"II*\0\0\0\0\0") + head)
        self._link = 8 if big else 4  # where the offset of the next page goes
        # Number of tags of a page; a tag; an offset.
        self._formats = ("<Q", "<HHQ8s", "<Q") if big else ("<H", "<HHI4s", "<I")

    def append(self, data: bytes) -> int:
        """Append data; their offset."""
        self.content += b"\0" * (len(self.content) % 2)
        offset = len(self.content)
        self.content += data
        return offset

    def add_page(self, planes: np.ndarray, tags: dict[int, tuple], samples: int = 1) -> int:
        """
        Append a page: its tags, its pixels, and the values that are too long for a tag.

        Args:
            planes (`np.ndarray`): `[..., Y, X]`. Planes beyond those of the samples stand behind them without a tag.
            tags (`dict[int, tuple]`): Type and value, or type, count and bytes, by number; replaces the usual ones.
            samples (`int`): Of a pixel, stored one after the other.

        Returns:
            `int`: Offset of the page.
        """
        height, width = planes.shape[-2:]
        nbytes = height * width * planes.dtype.itemsize
        usual = {
            254: (LONG, 0),
            256: (LONG, width),
            257: (LONG, height),
            258: (SHORT, [8 * planes.dtype.itemsize] * samples),
            259: (SHORT, 1),
            262: (SHORT, 1),
            273: (LONG, [0] * samples),
            277: (SHORT, samples),
            278: (LONG, height),
            279: (LONG, [nbytes] * samples),
            284: (SHORT, 2 if samples > 1 else 1),
        }
        tags = usual | tags
        number_format, tag_format, offset_format = self._formats
        start, size, short = (
            struct.calcsize(number_format),
            struct.calcsize(tag_format),
            struct.calcsize(offset_format),
        )
        page = self.append(bytes(start + size * len(tags) + short))
        pixels = self.append(planes.astype(planes.dtype.newbyteorder("<")).tobytes())
        if tags[273] is usual[273]:
            tags[273] = (LONG, [pixels + sample * nbytes for sample in range(samples)])
        struct.pack_into(number_format, self.content, page, len(tags))
        for number, (code, (kind, *value)) in enumerate(sorted(tags.items())):
            count, data = value if len(value) == 2 else self._encode(kind, value[0])
            stored = data if len(data) <= short else struct.pack(offset_format, self.append(data))
            at = page + start + size * number
            struct.pack_into(tag_format, self.content, at, code, kind, count, stored.ljust(short, b"\0"))
        struct.pack_into(offset_format, self.content, self._link, page)
        self._link = page + start + size * len(tags)
        return page

    @staticmethod
    def _encode(kind: int, value) -> tuple[int, bytes]:
        if kind in (ASCII, UNDEFINED):
            data = value.encode() + b"\0" if isinstance(value, str) else value
            return len(data), data
        values = np.ravel(value).tolist()
        if kind == RATIONAL:
            return len(values) // 2, struct.pack(f"<{len(values)}I", *values)
        return len(values), struct.pack(f"<{len(values)}{CODES[kind]}", *values)

    def write(self, path: Path):
        path.write_bytes(self.content)


def ome_metadata(axes: str, count: int) -> dict:
    """What tifffile writes as OME-XML."""
    metadata = {
        "axes": axes,
        "PhysicalSizeX": PIXEL,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": PIXEL,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": STEP,
        "PhysicalSizeZUnit": "µm",
        "TimeIncrement": INTERVAL,
        "TimeIncrementUnit": "s",
        "Description": "A cell.",
        "Channel": {
            "Name": NAMES,
            "Color": [0x0000FFFF, 0x00FF00FF],
            "EmissionWavelength": [461.0, 518.0],
            "ExcitationWavelength": [405.0, 488.0],
        },
        "Plane": {"ExposureTime": [0.05] * count, "DeltaT": [0.1 * number for number in range(count)]},
    }
    for axis, place in zip("XYZ", PLACE, strict=True):
        metadata["Plane"] |= {f"Position{axis}": [place] * count, f"Position{axis}Unit": ["µm"] * count}
    return metadata


def write_ome_tiff(path: Path, data: np.ndarray):
    """TZCYX, with an objective, which tifffile does not write."""
    metadata = ome_metadata("TZCYX", data[..., 0, 0].size)
    tifffile.imwrite(path, data, ome=True, photometric="minisblack", metadata=metadata)
    described = tifffile.tiffcomment(path)
    instrument = (
        '<Instrument ID="Instrument:0"><Objective ID="Objective:0" LensNA="1.4" Immersion="Oil"/></Instrument>'
    )
    described = described.replace("<Image ", f"{instrument}<Image ", 1)
    settings = '<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>'
    tifffile.tiffcomment(path, described.replace("<Pixels ", f"{settings}<Pixels ", 1).encode())


def write_binary_only(path: Path, data: np.ndarray):
    """TZCYX in a file that has only pixels; the OME-XML is in its companion."""
    write_ome_tiff(path, data)
    described = tifffile.tiffcomment(path)
    companion = path.with_name(path.name.split(".")[0] + ".companion.ome")
    identifier = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, path.name)}"
    reference = f'><UUID FileName="{path.name}">{identifier}</UUID></TiffData>'
    start = described.index("<TiffData")
    end = described.index("/>", start)
    companion.write_text(described[:end] + reference + described[end + 2 :], encoding="utf-8")
    only = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="{identifier}"><BinaryOnly MetadataFile="{companion.name}" UUID="urn:uuid:{uuid.UUID(int=1)}"/></OME>'
    )
    tifffile.tiffcomment(path, only.encode())


def write_imagej(path: Path, data: np.ndarray):
    """TZCYX, with look-up tables, display ranges and text."""
    ramp = np.arange(256, dtype=np.uint8)
    blue, green = np.zeros((2, 3, 256), np.uint8)
    blue[2], green[1] = ramp, ramp
    metadata = {"axes": "TZCYX", "unit": "um", "spacing": STEP, "finterval": INTERVAL}
    metadata |= {"Labels": NAMES * (data[..., 0, 0].size // 2), "LUTs": [blue, green], "Ranges": (100, 900, 50, 1500)}
    metadata |= {"Info": "A cell.", "mode": "composite"}
    tifffile.imwrite(path, data, imagej=True, resolution=(1 / PIXEL, 1 / PIXEL), metadata=metadata)


def write_shaped(path: Path, data: np.ndarray):
    """TZCYX, with the words of ImageJ in tifffile's own description, as of `imwrite` without `imagej=True`."""
    metadata = {"axes": "TZCYX", "unit": "um", "spacing": STEP, "finterval": INTERVAL, "channel_names": NAMES}
    tifffile.imwrite(path, data, photometric="minisblack", resolution=(1 / PIXEL, 1 / PIXEL), metadata=metadata)


def write_plain(path: Path, data: np.ndarray):
    """ZYX as pages, with a resolution in pixels per cm."""
    resolution = {"resolution": (1e4 / PIXEL, 1e4 / PIXEL), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, data, photometric="minisblack", metadata=None, **resolution)


def write_micromanager(path: Path, data: np.ndarray, position: int = 0, num_positions: int = 1, ome_xml: str = ""):
    """TZCYX, as Micro-Manager 1.4 and 2 write stacks: an index of the pages and a summary in the head of the file."""
    summary = json.dumps(
        {
            "MicroManagerVersion": "2.0.0",
            "PixelSize_um": PIXEL,
            "z-step_um": STEP,
            "Interval_ms": 1000 * INTERVAL,
            "ChNames": NAMES[: data.shape[2]],
            "ChColors": [int(color, 16) - 2**24 for color in COLORS[: data.shape[2]]],  # opaque
            "Frames": data.shape[0],
            "Slices": data.shape[1],
            "Channels": data.shape[2],
            "Positions": num_positions,
            "SlicesFirst": True,
            "TimeFirst": True,
            "Prefix": path.name.split("_MMStack")[0],
        }
    ).encode()
    tif = RawTiff(bytes(32) + summary)
    index = b""
    x, y, z = PLACE
    for t, s, c in np.ndindex(data.shape[:3]):
        frame = {"XPositionUm": x, "YPositionUm": y, "ZPositionUm": z + s * STEP, "Exposure-ms": 50}
        tags = {51123: (ASCII, json.dumps(frame | {"ElapsedTime-ms": 1000 * INTERVAL * t})), 282: (RATIONAL, (1, 1))}
        if ome_xml and not index:
            tags[270] = (ASCII, ome_xml)
        offset = tif.add_page(data[t, s, c], tags)
        index += struct.pack("<5I", c, s, t, position, offset)
    index_offset = tif.append(struct.pack("<2I", 3453623, len(index) // 20) + index)
    display = tif.append(struct.pack("<2I", 347834724, 2) + b"[]")
    comments = tif.append(struct.pack("<2I", 84720485, 2) + b"{}")
    struct.pack_into(
        "<8I", tif.content, 8,
        54773648, index_offset, 483765892, display, 99384722, comments, 2355492, len(summary),
    )  # fmt: skip
    tif.write(path)


def write_lsm(path: Path, data: np.ndarray):
    """TZCYX, every page followed by its thumbnail in colours, as Zeiss LSM 510 to 880 write them."""
    frames, slices, channels, height, width = data.shape
    tif = RawTiff()
    names = b"".join(struct.pack("<I", len(name) + 1) + name.encode() + b"\0" for name in NAMES[:channels])
    shades = b"".join(bytes.fromhex(color) + b"\0" for color in COLORS[:channels])
    colors = struct.pack("<6I", 24 + len(shades) + len(names), channels, channels, 24, 24 + len(shades), 0)
    lens = OBJECTIVE.encode() + b"\0"
    scan = struct.pack("<3I", 0x10000000, 0, 0) + struct.pack("<3I", 0x10000004, 2, len(lens)) + lens
    offsets = {
        "ChannelColors": tif.append(colors + shades + names),
        "ScanInformation": tif.append(scan + struct.pack("<3I", 0xFFFFFFFF, 0, 0)),
        "TimeStamps": tif.append(struct.pack(f"<2i{frames}d", 8 + 8 * frames, frames, *np.arange(frames) * INTERVAL)),
        "ChannelWavelength": tif.append(struct.pack("<i4d", 2, 450e-9, 472e-9, 508e-9, 528e-9)),
        "Positions": tif.append(struct.pack("<I3d", 1, *(1e-6 * place for place in PLACE))),
    }
    values = {"MagicNumber": 67127628, "StructureSize": 0, "DimensionX": width, "DimensionY": height}
    values |= {"DimensionZ": slices, "DimensionChannels": channels, "DimensionTime": frames, "DataType": 2}
    values |= {"VoxelSizeX": PIXEL * 1e-6, "VoxelSizeY": PIXEL * 1e-6, "VoxelSizeZ": STEP * 1e-6, "ScanType": 6}
    values |= {"ThumbnailX": 8, "ThumbnailY": 8, **{f"Offset{name}": offset for name, offset in offsets.items()}}
    record = np.zeros((), tifffile.TIFF.CZ_LSMINFO)
    for name, value in values.items():
        record[name] = value
    record["StructureSize"] = record.nbytes
    for number, (t, z) in enumerate(np.ndindex(frames, slices)):
        tags = {} if number else {34412: (UNDEFINED, record.tobytes())}
        if channels == 2:  # two values would fit into the tag, but LSM stores their offset
            bits = tif.append(struct.pack("<2H", 8 * data.dtype.itemsize, 8 * data.dtype.itemsize))
            tags[258] = (SHORT, 2, struct.pack("<I", bits))
        tif.add_page(data[t, z], tags, samples=channels)
        thumbnail = np.zeros((3, 8, 8), np.uint8)
        tif.add_page(thumbnail, {254: (LONG, 1), 262: (SHORT, 2)}, samples=3)
    tif.write(path)


def write_stk(path: Path, data: np.ndarray, step: float = STEP):
    """ZYX in a single page, as MetaMorph writes stacks; with a step of 0, TYX."""
    planes = len(data)
    tif = RawTiff()

    def fractions(*values: float) -> bytes:
        return b"".join(struct.pack("<2I", int(value * 1000), 1000) for value in values)

    unit = tif.append(struct.pack("<I", 3) + b"um\0")
    name = tif.append(struct.pack("<I", 4) + b"DNA\0")
    side = tif.append(fractions(PIXEL))
    internal = [(3, 1), (4, side), (5, side), (6, unit), (7, name)]
    places = struct.pack("<H", 28) + fractions(*PLACE[:2]) * planes
    heights = struct.pack("<H", 40) + fractions(*(PLACE[2] + step * number for number in range(planes)))
    times = b"".join(
        fractions(step) + struct.pack("<4I", *[2460000, int(1000 * INTERVAL) * plane] * 2) for plane in range(planes)
    )
    waves = struct.pack("<2I", 461, 1) * planes
    texts = "\0".join("Exposure: 50 ms\r\nBinning: 1 x 1" for _ in range(planes))
    tags = {
        270: (ASCII, texts),
        33628: (LONG, len(internal), b"".join(struct.pack("<2I", *each) for each in internal)),
        33629: (RATIONAL, planes, times),
        33630: (RATIONAL, planes, waves),
        33631: (LONG, planes, places + heights + bytes(2)),
    }
    tif.add_page(data, tags)
    tif.write(path)


def write_metaseries(path: Path, data: np.ndarray):
    """YX, as MetaXpress writes every plane."""
    entries = {"spatial-calibration-state": ("bool", "on"), "spatial-calibration-x": ("float", PIXEL)}
    entries |= {"spatial-calibration-y": ("float", PIXEL), "spatial-calibration-units": ("string", "um")}
    entries |= {"_IllumSetting_": ("string", "DNA"), "wavelength": ("float", 461), "_MagNA_": ("float", 1.4)}
    entries |= {"stage-position-x": ("float", PLACE[0]), "stage-position-y": ("float", PLACE[1])}
    entries |= {"z-position": ("float", PLACE[2]), "Exposure Time": ("string", "50 ms")}
    lines = "".join(f'<prop id="{key}" type="{kind}" value="{value}"/>' for key, (kind, value) in entries.items())
    text = f"<MetaData><PlaneInfo>{lines}</PlaneInfo></MetaData>"
    tifffile.imwrite(path, data, description=text, software="MetaSeries", metadata=None)


def write_fluoview(path: Path, data: np.ndarray):
    """TZCYX, as Olympus FluoView 300 to 1000 write it."""
    frames, slices, channels, height, width = data.shape
    record = np.zeros((), tifffile.TIFF.MM_HEADER)
    sizes = [("X", width, PIXEL, "um"), ("Y", height, PIXEL, "um"), ("Ch", channels, 1, "")]
    sizes += [("Z", slices, STEP, "um"), ("Time", frames, INTERVAL, "s")]
    for number in range(10):
        name, size, step, unit = sizes[number] if number < len(sizes) else ("", 1, 1, "")
        record["Dimensions"][number] = (name, size, 0, step, unit)
    text = f"[Acquisition Parameters]\nObjective Lens={OBJECTIVE}\n" + "".join(
        f"[Channel {number}]\nDye={name}\n[Channel {number} End]\n" for number, name in enumerate(NAMES[:channels], 1)
    )
    tif = RawTiff()
    for number, index in enumerate(np.ndindex(data.shape[:3])):
        tags = {34362: (DOUBLE, [0.0] * 8)}
        if not number:
            tags |= {34361: (UNDEFINED, record.tobytes()), 270: (ASCII, text)}
        tif.add_page(data[index], tags)
    tif.write(path)


def write_scanimage(path: Path, data: np.ndarray, big: bool = True):
    """ZCYX, as ScanImage 2016 and later write it."""
    slices, channels, height, width = data.shape
    corners = [[-width, -height], [width, -height], [width, height], [-width, height]]
    square = "; ".join(f"{x * PIXEL / 2} {y * PIXEL / 2}" for x, y in corners)
    settings = {
        "SI.VERSION_MAJOR": "2020",
        "SI.hChannels.channelName": "{" + " ".join(f"'{name}'" for name in NAMES[:channels]) + "}",
        "SI.hChannels.channelSave": "[" + ";".join(str(number + 1) for number in range(channels)) + "]",
        "SI.hChannels.channelLUT": "{" + " ".join(["[100 900]", "[50 1500]"][:channels]) + "}",
        "SI.hStackManager.framesPerSlice": "1",
        "SI.hStackManager.actualNumSlices": str(slices),
        "SI.hStackManager.stackZStepSize": str(STEP),
        "SI.hRoiManager.imagingFovUm": f"[{square}]",
        "SI.hRoiManager.scanFramePeriod": str(INTERVAL),
        "SI.hMotors.motorPosition": "[" + " ".join(map(str, PLACE)) + "]",
    }
    text = "\n".join(f"{key} = {value}" for key, value in settings.items())
    # ScanImage writes the text twice: in the head of a BigTIFF, and as the tag Software of every page.
    head = text.encode() + b"\0"
    tif = RawTiff(struct.pack("<4I", 0x07030301, 4, len(head), 0) + head if big else b"", big)
    for plane in data.reshape(-1, height, width):
        tif.add_page(plane, {305: (ASCII, text)})
    tif.write(path)


def write_sis(path: Path, data: np.ndarray):
    """YX, as Olympus cellSens and analySIS write it."""
    tif = RawTiff()
    general = tif.append(struct.pack("<10xhdd8xd2x34s32s", -6, PIXEL, PIXEL, 63.0, b"camera", b"picture"))
    record = struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 0, 12, 1, 0, 120, b"name", 1) + struct.pack(
        "<hhI", 1, 1, general
    )
    tif.add_page(data, {33560: (LONG, 1, struct.pack("<I", tif.append(record)))})
    tif.write(path)


def write_digital_micrograph(path: Path, data: np.ndarray):
    """ZYX, with the tags that Gatan DigitalMicrograph and programs that export for it write."""
    tags = [(65003 + axis, "s", 0, "um", True) for axis in range(3)]
    tags += [(65009 + axis, "d", 1, size, True) for axis, size in enumerate((PIXEL, PIXEL, STEP))]
    tifffile.imwrite(path, data, photometric="minisblack", metadata=None, extratags=tags)


def write_min_is_white(path: Path, data: np.ndarray):
    """YX, with 0 as white."""
    greatest = np.iinfo(data.dtype).max
    tifffile.imwrite(path, (greatest - data).astype(data.dtype), photometric="miniswhite", metadata=None)


def write_packed(path: Path, data: np.ndarray, bits: int = 12, photometric: str = "minisblack"):
    """YX or ZYX, of values of `bits` bits, packed. tifffile packs them only with imagecodecs of 2026.3.6 or later."""
    digits = np.unpackbits(data.astype(">u2").view(np.uint8).reshape(*data.shape, 2), axis=-1)[..., -bits:]
    rows = np.packbits(digits.reshape(*data.shape[:-1], -1), axis=-1)  # each begins with a new byte
    strips = (plane.tobytes() for plane in rows.reshape(-1, *rows.shape[-2:]))
    layout = {"shape": data.shape, "dtype": data.dtype, "rowsperstrip": data.shape[-2], "bitspersample": bits}
    tifffile.imwrite(path, strips, **layout, photometric=photometric, metadata=None)


def write_ome_zarr(path: Path, data: np.ndarray, version: str = "0.5"):
    """TCZYX, with what OME-Zarr has a place for."""
    import zarr

    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    array = group.create_array("0", shape=data.shape, chunks=(1, 1, 1, *data.shape[-2:]), dtype=data.dtype)
    array[:] = data
    kinds = {"t": ("time", "second"), "c": ("channel", None)} | dict.fromkeys("zyx", ("space", "micrometer"))
    axes = [{"name": name, "type": kind, **({"unit": unit} if unit else {})} for name, (kind, unit) in kinds.items()]
    transforms = [
        {"type": "scale", "scale": [INTERVAL, 1.0, STEP, PIXEL, PIXEL]},
        {"type": "translation", "translation": [0.0, 0.0, PLACE[2], PLACE[1], PLACE[0]]},
    ]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    window = {"min": 0, "max": 65535, "start": 100, "end": 900}
    channels = [{"label": name, "color": color, "window": window} for name, color in zip(NAMES, COLORS, strict=True)]
    described = {"multiscales": [image | {"version": version}], "omero": {"channels": channels}}
    group.attrs.update({"ome": described | {"version": version}} if version == "0.5" else described)


def write_plate(path: Path, fields: list[np.ndarray], version: str = "0.5"):
    """A plate of two wells with the fields in turn, each TCZYX."""
    import zarr

    options = {"zarr_format": 2 if version == "0.4" else 3}

    def describe(group, described: dict):
        group.attrs.update({"ome": described | {"version": version}} if version == "0.5" else described)

    wells = ["A/1", "B/2"]
    paths = [f"{wells[number % 2]}/{number // 2}" for number in range(len(fields))]
    plate = zarr.create_group(path, **options)
    described = {"rows": [{"name": "A"}, {"name": "B"}], "columns": [{"name": "1"}, {"name": "2"}], "name": "plate"}
    described["wells"] = [{"path": well, "rowIndex": i, "columnIndex": i} for i, well in enumerate(wells)]
    describe(plate, {"plate": described})
    for well in wells:
        images = [{"path": name.rsplit("/", 1)[1]} for name in paths if name.startswith(well)]
        plate.create_group(well.split("/")[0], overwrite=False) if well.split("/")[0] not in plate else None
        describe(plate.create_group(well), {"well": {"images": images}})
    for name, field in zip(paths, fields, strict=True):
        write_ome_zarr(path / name, field, version)


def write_bioformats2raw(path: Path, images: list[np.ndarray], version: str = "0.5"):
    """Images side by side, each TCZYX."""
    import zarr

    options = {"zarr_format": 2 if version == "0.4" else 3}
    group = zarr.create_group(path, **options)
    layout, listed = {"bioformats2raw.layout": 3}, {"series": [str(number) for number in range(len(images))]}
    group.attrs.update({"ome": {**layout, "version": version}} if version == "0.5" else layout)
    inner = group.create_group("OME")
    inner.attrs.update({"ome": {**listed, "version": version}} if version == "0.5" else listed)
    for number, image in enumerate(images):
        write_ome_zarr(path / str(number), image, version)


# Formats, and what their files state


@dataclass(frozen=True)
class Format:
    """
    A format of files.

    Attributes:
        name (`str`): What a microscopist calls it.
        file (`str`): Name of a file.
        write (`Callable`): Writes data to a path.
        axes (`str`): Of the data.
        sizes (`str`): Which of pixel size `P`, step `Z` and interval `T` it states.
        states (`str`): What else it states: names `N`, position `S`, colours `C`, look-up tables or display ranges
            `D`, exposure `E`, wavelengths `W`, objective `O`, text `X`.
    """

    name: str
    file: str
    write: Callable[[Path, np.ndarray], None]
    axes: str
    sizes: str = ""
    states: str = ""

    def data(self) -> np.ndarray:
        """Counts of up to 12 bits, with a length of its own for every axis."""
        lengths = {"T": 3, "Z": 4, "C": 2, "Y": 24, "X": 28}
        shape = [lengths[axis] for axis in self.axes]
        return np.random.default_rng(0).integers(0, 4000, shape, dtype=np.uint16)


FORMATS = [
    Format("OME-TIFF", "a.ome.tif", write_ome_tiff, "TZCYX", "PZT", "NSCEWOX"),
    Format("OME-TIFF with a companion file", "a.ome.tif", write_binary_only, "TZCYX", "PZT", "NSCEWOX"),
    Format("ImageJ TIFF", "a.tif", write_imagej, "TZCYX", "PZT", "NCDX"),
    Format("TIFF by tifffile", "a.tif", write_shaped, "TZCYX", "PZT", "N"),
    Format("Micro-Manager", "a_MMStack_Pos0.ome.tif", write_micromanager, "TZCYX", "PZT", "NSCE"),
    Format("Zeiss LSM", "a.lsm", write_lsm, "TZCYX", "PZT", "NSCWO"),
    Format("MetaMorph STK", "a.stk", write_stk, "ZYX", "PZ", "NSEWX"),
    Format("MetaXpress TIFF", "a.tif", write_metaseries, "YX", "P", "NSEWO"),
    Format("Olympus FluoView", "a.tif", write_fluoview, "TZCYX", "PZT", "NOX"),
    Format("Olympus cellSens TIFF", "a.tif", write_sis, "YX", "P"),
    Format("ScanImage", "a.tif", write_scanimage, "ZCYX", "PZT", "NSD"),
    Format("DigitalMicrograph TIFF", "a.tif", write_digital_micrograph, "ZYX", "PZ"),
    Format("plain TIFF with a resolution", "a.tif", write_plain, "ZYX", "P"),
    Format("TIFF, 0 is white", "a.tif", write_min_is_white, "YX"),
    Format("TIFF, packed 12 bits", "a.tif", write_packed, "YX"),
    Format("OME-Zarr 0.4", "a.zarr", lambda path, data: write_ome_zarr(path, data, "0.4"), "TCZYX", "PZT", "NSCD"),
    Format("OME-Zarr 0.5", "a.zarr", write_ome_zarr, "TCZYX", "PZT", "NSCD"),
]


def facts_read(micrograph) -> dict[str, bool]:
    """Which of the facts of this module a micrograph states, by the letters of [`Format`]."""
    acquisition, channels = micrograph.acquisition, micrograph.acquisition.channels
    position = acquisition.first_position
    first = channels[0] if channels else None
    names = NAMES if "C" in micrograph.axes else NAMES[:1]
    colors = COLORS if "C" in micrograph.axes else COLORS[:1]

    def close(value, expected) -> bool:
        return value is not None and bool(np.allclose(np.array(value, float), expected, rtol=1e-6))  # None is NaN

    return {
        "P": micrograph.pixel_size_unit == "µm" and close(micrograph.pixel_size, (PIXEL, PIXEL)),
        "Z": micrograph.z_step_unit == "µm" and close(micrograph.z_step, STEP),
        "T": micrograph.time_interval_unit == "s" and close(micrograph.time_interval, INTERVAL),
        "N": micrograph.channel_names == names,
        "S": position is not None and position.unit == "µm" and close((position.x, position.y, position.z), PLACE),
        "C": [channel.color for channel in channels] == colors,
        "D": first is not None and close(first.display_range, (100, 900)),
        "E": bool(acquisition.planes) and close([plane.exposure_time for plane in acquisition.planes], 0.05),
        "W": first is not None and close(first.emission_wavelength, 461),
        "O": acquisition.numerical_aperture == 1.4,
        "X": bool(acquisition.description),
    }
