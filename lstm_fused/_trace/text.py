# SPDX-License-Identifier: BSD-3-Clause
"""What can be said of each character's place in a text, for units to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

_OPENING, _CLOSING = "([{", ")]}"


def text_features(characters: Sequence[str]) -> dict[str, list[float]]:
    """Numbers for each character, by name, as one knows them who has read up to it.

    position in the line: characters since the line began; 0 at a line's end. indentation: blanks
    that the line has begun with. inside double quotes: 1 from an opening quote until the closing
    one. depth of brackets: of those that are open. position in the word: letters since it began.
    Quotes and brackets that were left open end with the paragraph, at an empty line.
    """
    features: dict[str, list[float]] = {
        "position in the line": [],
        "indentation": [],
        "inside double quotes": [],
        "depth of brackets": [],
        "position in the word": [],
    }
    position, indentation, quoted, depth, in_word = 0, 0, False, 0, 0
    for character in characters:
        if character == "\n":
            if position == indentation:  # nothing but blanks: a paragraph ends
                quoted, depth = False, 0
            position = indentation = 0
        else:
            if character == " " and position == indentation:
                indentation += 1
            position += 1
        if character == '"':
            quoted = not quoted
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        in_word = in_word + 1 if character.isalpha() else 0
        numbers = position, indentation, quoted, depth, in_word
        for own, number in zip(features.values(), numbers, strict=True):
            own.append(float(number))
    return features
