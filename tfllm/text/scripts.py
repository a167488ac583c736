"""Ranges of characters, as they stand inside the brackets of a regular expression."""

# Chinese characters, and the kana of Japanese.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HANGUL = "\uac00-\ud7af"
# All scripts that put no spaces between words, and their signs.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uabff\uf900-\ufaff"
UNSPACED += "\U00020000-\U0003ffff"
