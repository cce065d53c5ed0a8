"""The attribution that is written beside every build of the emoji data set."""

ATTRIBUTION = """\
# Emoji data: where it comes from, and under which licences

The files of this folder were made by `vlalign data build emoji` from public npm packages.
The texts of the licences stand in `licenses/`.

`noto.array_record`: the drawings of Noto Emoji. Copyright Google LLC and contributors,
<https://github.com/googlefonts/noto-emoji>. Licence: Apache-2.0.
Through npm `emoji-datasource-google` 16.0.0.

`twemoji.array_record`: the drawings of Twemoji. Copyright Twitter, Inc and other contributors,
<https://github.com/jdecked/twemoji>. Licence: CC BY 4.0,
<https://creativecommons.org/licenses/by/4.0/>. Through npm `emoji-datasource-twitter` 16.0.0.

`concepts.jsonl.gz`:
- names and keywords: the annotations of CLDR. Copyright 2004-2026 Unicode, Inc.,
  <https://cldr.unicode.org>. Licence: Unicode-3.0. npm `cldr-annotations-full` 48.2.0.
- categories, order, and the English names and keywords that CLDR's annotations lack: emoji-data.
  Copyright 2013 Cal Henderson, <https://github.com/iamcal/emoji-data>. Licence: MIT.
  npm `emoji-datasource` 16.0.0.

Changes made: the 64 px PNG drawings were re-encoded as WebP (quality 75, lossless alpha); a comma
inside a keyword became a space; duplicate keywords were removed; English names that CLDR's
annotations lack were put in lower case, and country flags written as "flag: France".
No endorsement by the authors is implied.
"""
