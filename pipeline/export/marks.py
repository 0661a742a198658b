"""The mark of a synthetic image, inside its PNG: text chunks, and XMP as IPTC asks for it.

IPTC Photo Metadata Standard 2023.2, "Digital Source Type": images made by a trained model carry
`trainedAlgorithmicMedia`. PNG keeps XMP in an iTXt chunk named `XML:com.adobe.xmp` (XMP
specification part 3, section 1.1.5). Pixels do not change, so neither does the image's id.
"""

import io
from collections.abc import Mapping

from PIL import Image, PngImagePlugin

from pipeline import __version__
from pipeline.data.images import ImageMode, Images
from pipeline.export.names import one_line

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP_KEY = "XML:com.adobe.xmp"
SOFTWARE = f"Replenish {__version__}"
DESCRIPTION = "Synthetic image, drawn by a trained diffusion model; it shows nothing real."
_XMP = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmp:CreatorTool="{SOFTWARE}"
    Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND"})
_COLOUR_TYPES: dict[ImageMode, int] = {"L": 0, "RGB": 2}  # PNG specification, section 11.2.2


def marked_png(image: Images, facts: Mapping[str, object]) -> bytes:
    """Return the PNG of a synthetic image with its mark.

    Args:
        image: (H, W, C) uint8, C = 1 or 3.
        facts: what the chunks `replenish:<name>` say, e.g. generator, class, index, id; values
            that are None are left out.
    """
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", SOFTWARE)
    info.add_text("Description", DESCRIPTION)
    for name, value in facts.items():
        if value is not None:
            info.add_text(f"replenish:{name}", one_line(str(value)))
    info.add_itxt(XMP_KEY, _XMP)
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6, pnginfo=info)
    return buffer.getvalue()


def is_marked(png: bytes) -> bool:
    """Say whether a PNG's XMP calls it trainedAlgorithmicMedia.

    Raises:
        ValueError, OSError, SyntaxError: it is no PNG, or a damaged one.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()  # chunks may stand behind the pixels
        found = image.info.get("xmp") or image.info.get(XMP_KEY) or b""
    packet: bytes = found if isinstance(found, bytes) else str(found).encode()
    return SOURCE_TYPE.encode() in packet


def is_plain(png: bytes, mode: ImageMode) -> bool:
    """Say whether a PNG is 8-bit of the mode and holds pixels and nothing else."""
    if not png.startswith(_SIGNATURE) or len(png) < 33 or png[12:16] != b"IHDR":
        return False
    if (png[24], png[25]) != (8, _COLOUR_TYPES[mode]):
        return False
    at = len(_SIGNATURE)
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        kind = png[at + 4 : at + 8]
        if kind not in _PLAIN_CHUNKS:
            return False
        at += 12 + length
        if kind == b"IEND":
            return at == len(png)
    return False
