# SPDX-License-Identifier: Apache-2.0
"""The 5 x 7 font of the signs: 36 glyphs (A-Z, 0-9), drawn on the pixel grid.

Each row of a glyph is five bits, most significant bit on the left, written as two hex digits.
"""

from functools import cache

import numpy as np
from jaxtyping import Bool

GLYPH_WIDTH, GLYPH_HEIGHT = 5, 7  # pixels of ink box
PITCH = 6  # pixels from one letter to the next
SIGN_MARGIN = 2  # pixels between the edge of a sign and its letters
SIGN_HEIGHT = GLYPH_HEIGHT + 2 * SIGN_MARGIN

FONT = {
    "A": "0E11111F111111",
    "B": "1E11111E11111E",
    "C": "0E11101010110E",
    "D": "1E11111111111E",
    "E": "1F10101E10101F",
    "F": "1F10101E101010",
    "G": "0E11101713110F",
    "H": "1111111F111111",
    "I": "0E04040404040E",
    "J": "0702020202120C",
    "K": "11121418141211",
    "L": "1010101010101F",
    "M": "111B1515111111",
    "N": "11191513111111",
    "O": "0E11111111110E",
    "P": "1E11111E101010",
    "Q": "0E11111115120D",
    "R": "1E11111E141211",
    "S": "0F10100E01011E",
    "T": "1F040404040404",
    "U": "1111111111110E",
    "V": "11111111110A04",
    "W": "1111111515150A",
    "X": "11110A040A1111",
    "Y": "11110A04040404",
    "Z": "1F01020408101F",
    "0": "0E11131519110E",
    "1": "040C040404040E",
    "2": "0E11010204081F",
    "3": "1F02040201110E",
    "4": "02060A121F0202",
    "5": "1F101E0101110E",
    "6": "0608101E11110E",
    "7": "1F010204080808",
    "8": "0E11110E11110E",
    "9": "0E11110F01020C",
}


@cache
def glyph(char: str) -> Bool[np.ndarray, "7 5"]:
    """The pixels of one letter, True = ink.

    Raises:
      ValueError: If the font has no such letter.
    """
    if char not in FONT:
        raise ValueError(f"sign letter {char!r} is not among A-Z0-9")
    rows = bytes.fromhex(FONT[char])
    bits = np.unpackbits(np.frombuffer(rows, np.uint8)[:, None], axis=1)
    return bits[:, 8 - GLYPH_WIDTH :].astype(bool)


def sign_width(word: str) -> int:
    """Width in pixels of the bar that carries `word`."""
    return PITCH * len(word) + 2 * SIGN_MARGIN - 1


def sign_ink(word: str) -> Bool[np.ndarray, "11 width"]:
    """The pixels of a whole sign, True = ink, False = bar."""
    ink = np.zeros((SIGN_HEIGHT, sign_width(word)), bool)
    for i, char in enumerate(word):
        x = SIGN_MARGIN + PITCH * i
        ink[SIGN_MARGIN : SIGN_MARGIN + GLYPH_HEIGHT, x : x + GLYPH_WIDTH] = glyph(char)
    return ink
