"""Builds the emoji data set from four npm tarballs, read in place and never unpacked to disk.

The same tarballs and library versions give the same bytes. Only the exact members wanted are
read, each below a size limit, so a hostile archive can neither write a file nor fill the memory.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vlalign.data.emoji import ASSETS, CONCEPTS_FILE, LANGUAGES
from vlalign.data.emoji_text import ATTRIBUTION
from vlalign.data.record import Record, encode_record
from vlalign.data.sources import write_array_record
from vlalign.errors import UserError

EMOJI_PACKAGE = "emoji-datasource-16.0.0.tgz"
CLDR_PACKAGE = "cldr-annotations-full-48.2.0.tgz"
# style -> (tarball, name of the style inside it)
STYLE_PACKAGES = {
    "noto": ("emoji-datasource-google-16.0.0.tgz", "google"),
    "twemoji": ("emoji-datasource-twitter-16.0.0.tgz", "twitter"),
}
SIZE = 64

_MAX_JSON = 16 << 20
_MAX_IMAGE = 1 << 20
_VARIATION_SELECTOR = "\ufe0f"

Progress = Callable[[str, int, int], None]  # (what, done, total)


def build(
    from_dir: Path, out_dir: Path = ASSETS, *, progress: Progress = lambda *_: None
) -> dict[str, int]:
    """Build the data set into `out_dir`; returns the size in bytes by file name.

    from_dir: folder with the four tarballs as `npm pack` leaves them.
    Raises UserError for a missing or damaged tarball, naming the file and the remedy.
    """
    concepts, images = _read_concepts(from_dir)
    licenses = _licenses(from_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for style, (package, folder) in STYLE_PACKAGES.items():
        members = [f"package/img/{folder}/{SIZE}/{image}" for image in images]
        pngs = _read_members(from_dir / package, members, _MAX_IMAGE, _report(progress, style))
        path = out_dir / f"{style}.array_record"
        write_array_record(path, _image_records(concepts, [pngs[name] for name in members]))
    (out_dir / CONCEPTS_FILE).write_bytes(_compressed(concepts))
    (out_dir / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
    (out_dir / "licenses").mkdir(exist_ok=True)
    for name, text in licenses.items():
        (out_dir / "licenses" / name).write_bytes(text)
    return {
        str(path.relative_to(out_dir)): path.stat().st_size
        for path in sorted(out_dir.rglob("*"))
        if path.is_file()
    }


def _report(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _read_concepts(from_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The concepts' text in the data source's order, and their image file names."""
    package = from_dir / EMOJI_PACKAGE
    emoji = _json(_read_members(package, ["package/emoji.json"], _MAX_JSON), package)
    members = [f"package/annotations/{language}/annotations.json" for language in LANGUAGES]
    package = from_dir / CLDR_PACKAGE
    data = _read_members(package, members, _MAX_JSON)
    annotations = {
        language: _json({name: data[name]}, package)["annotations"]["annotations"]
        for language, name in zip(LANGUAGES, members, strict=True)
    }
    kept = [entry for entry in emoji if entry["has_img_google"] and entry["has_img_twitter"]]
    return [concept(entry, annotations) for entry in kept], [entry["image"] for entry in kept]


def concept(entry: Mapping[str, Any], annotations: Mapping[str, Any]) -> dict[str, Any]:
    """The text of one emoji: names and keywords by language, category and subcategory.

    entry: one element of emoji.json. annotations: language -> CLDR's characters' annotations.
    CLDR's names are taken where it has the sequence (with, else without, variation selectors).
    Elsewhere only English is given, from emoji-datasource: "flag: France" for "France Flag" as
    CLDR writes it, else the name in lower case; its short names serve as keywords.
    """
    character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
    text = {}
    for language, table in annotations.items():
        found = table.get(character) or table.get(character.replace(_VARIATION_SELECTOR, ""))
        if found and found.get("tts"):
            # A comma inside a keyword would look like two keywords once they are joined.
            words = [word.replace(", ", " ").strip() for word in found.get("default", [])]
            text[language] = _text(found["tts"][0].strip(), words, "cldr")
    if "en" not in text:
        words = [part for name in entry["short_names"] for part in _words(name)]
        text["en"] = _text(_fallback_name(entry["name"]), words, "emoji-datasource")
    return {
        "key": entry["unified"].lower(),
        "category": entry["category"],
        "subcategory": entry["subcategory"],
        "text": text,
    }


def _text(name: str, keywords: list[str], source: str) -> dict[str, Any]:
    return {
        "name": name,
        "keywords": list(dict.fromkeys(word for word in keywords if word)),
        "source": source,
    }


def _fallback_name(name: str) -> str:
    country = name.removesuffix(" Flag")
    return f"flag: {country}" if country != name else name.lower()


def _words(short_name: str) -> list[str]:
    if short_name.startswith("flag-"):
        return ["flag", short_name.removeprefix("flag-")]
    return short_name.replace("_", " ").replace("-", " ").split()


def _image_records(concepts: list[dict[str, Any]], pngs: list[bytes]) -> Iterator[bytes]:
    for entry, png in zip(concepts, pngs, strict=True):
        yield encode_record(Record(key=entry["key"], image=_webp(png, entry["key"])))


def _webp(png: bytes, key: str) -> bytes:
    """PNG to WebP with lossless alpha: half the size of lossless colour, at 30 dB PSNR."""
    try:
        image = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"emoji image {key} is damaged: {error}; fetch the tarball again"
        ) from error
    out = io.BytesIO()
    image.save(out, "WEBP", quality=75, alpha_quality=100, method=5)
    return out.getvalue()


def _compressed(concepts: list[dict[str, Any]]) -> bytes:
    lines = (json.dumps(c, sort_keys=True, ensure_ascii=False) + "\n" for c in concepts)
    return gzip.compress("".join(lines).encode(), mtime=0)  # mtime 0: equal bytes at any time


def _licenses(from_dir: Path) -> dict[str, bytes]:
    packaged = ASSETS / "licenses"
    return {
        # The style packages carry only their packer's licence: the artists' stand in ours.
        **{name: (packaged / name).read_bytes() for name in ("Apache-2.0.txt", "CC-BY-4.0.txt")},
        "Unicode-3.0.txt": _license(from_dir / CLDR_PACKAGE),
        "MIT.txt": _license(from_dir / EMOJI_PACKAGE),
    }


def _license(path: Path) -> bytes:
    return _read_members(path, ["package/LICENSE"], _MAX_IMAGE)["package/LICENSE"]


def _json(data: Mapping[str, bytes], path: Path) -> Any:
    ((name, text),) = data.items()
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: {name} is not JSON: {error}") from error


def _read_members(
    path: Path, names: list[str], limit: int, report: Callable[[int, int], None] = lambda *_: None
) -> dict[str, bytes]:
    """The named regular files of a tarball, each at most `limit` bytes, in one pass."""
    if not path.is_file():
        package, _, version = path.name.removesuffix(".tgz").rpartition("-")
        raise UserError(f"no tarball {path}; fetch it with: npm pack {package}@{version}")
    wanted, found = set(names), dict[str, bytes]()
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                if member.name in wanted and member.isfile():
                    found[member.name] = _member(tar, member, limit, path)
                    report(len(found), len(wanted))
                    if len(found) == len(wanted):
                        break
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}; fetch it again with npm pack") from error
    for name in names:
        if name not in found:
            raise UserError(f"{path} has no file {name}: is it another version?")
    return found


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int, path: Path) -> bytes:
    if member.size > limit:
        raise UserError(f"{path}: {member.name} has {member.size} bytes, more than {limit}")
    file = tar.extractfile(member)
    assert file is not None  # isfile() was checked
    return file.read()
