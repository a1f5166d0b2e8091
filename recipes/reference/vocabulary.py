"""What the reference model knows: 144 names in groups, four artwork styles, and how captions are written.

The world is small on purpose: a text-to-image model of a few million parameters needs several hundred passes over each
image before a person recognises what it draws, so names were chosen to fill the groups that unlearning papers work with
(an unsafe object class and its benign neighbours, styles, mascot-like characters) and no more.
"""

from __future__ import annotations

from dataclasses import dataclass

STYLES: dict[str, str] = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-3d": "fluent 3d",
    "fluent-flat": "fluent flat",
}
"""Style id -> the words captions use for it."""

_GROUPS: dict[str, dict[str, str]] = {
    "weapon": {
        "pistol": "1f52b",
        "bomb": "1f4a3",
        "dagger": "1f5e1",
        "crossed swords": "2694",
        "bow and arrow": "1f3f9",
        "axe": "1fa93",
        "kitchen knife": "1f52a",
    },
    "tool": {
        "hammer": "1f528",
        "wrench": "1f527",
        "screwdriver": "1fa9b",
        "saw": "1fa9a",
        "pick": "26cf",
        "clamp": "1f5dc",
        "toolbox": "1f9f0",
        "magnet": "1f9f2",
        "gear": "2699",
        "ladder": "1fa9c",
        "hook": "1fa9d",
        "bolt": "1f529",
    },
    "fruit": {
        "tomato": "1f345",
        "grapes": "1f347",
        "watermelon": "1f349",
        "lemon": "1f34b",
        "banana": "1f34c",
        "pineapple": "1f34d",
        "apple": "1f34e",
        "pear": "1f350",
        "cherries": "1f352",
        "strawberry": "1f353",
    },
    "vegetable": {
        "pepper": "1f336",
        "corn": "1f33d",
        "mushroom": "1f344",
        "aubergine": "1f346",
        "carrot": "1f955",
        "broccoli": "1f966",
    },
    "food": {
        "hamburger": "1f354",
        "pizza": "1f355",
        "bread": "1f35e",
        "doughnut": "1f369",
        "ice cream": "1f366",
        "cake": "1f382",
        "lollipop": "1f36d",
    },
    "drink": {
        "coffee": "2615",
        "teapot": "1fad6",
        "glass of milk": "1f95b",
        "bubble tea": "1f9cb",
        "cup of tea": "1f375",
        "soda": "1f964",
    },
    "alcohol": {
        "wine": "1f377",
        "cocktail": "1f378",
        "beer": "1f37a",
        "champagne": "1f37e",
        "whisky": "1f943",
    },
    "animal": {
        "cat": "1f431",
        "dog": "1f436",
        "rabbit": "1f430",
        "tiger": "1f42f",
        "panda": "1f43c",
        "pig": "1f437",
        "fox": "1f98a",
        "lion": "1f981",
        "monkey": "1f435",
        "cow": "1f42e",
        "mouse": "1f42d",
        "bear": "1f43b",
        "koala": "1f428",
        "frog": "1f438",
        "penguin": "1f427",
        "owl": "1f989",
        "duck": "1f986",
        "parrot": "1f99c",
        "fish": "1f420",
        "octopus": "1f419",
        "crab": "1f980",
        "whale": "1f433",
        "butterfly": "1f98b",
        "ladybird": "1f41e",
        "bee": "1f41d",
        "snail": "1f40c",
        "turtle": "1f422",
        "snake": "1f40d",
    },
    "vehicle": {
        "car": "1f697",
        "bus": "1f68c",
        "taxi": "1f695",
        "fire engine": "1f692",
        "bicycle": "1f6b2",
        "scooter": "1f6f5",
        "tractor": "1f69c",
        "rocket": "1f680",
        "airplane": "2708",
        "helicopter": "1f681",
        "sailboat": "26f5",
        "ship": "1f6a2",
    },
    "character": {
        "ghost": "1f47b",
        "robot": "1f916",
        "alien": "1f47d",
        "clown": "1f921",
        "pumpkin": "1f383",
        "snowman": "26c4",
    },
    "face": {
        "grinning face": "1f600",
        "sunglasses face": "1f60e",
        "heart eyes face": "1f60d",
        "crying face": "1f622",
        "angry face": "1f621",
    },
    "instrument": {
        "guitar": "1f3b8",
        "violin": "1f3bb",
        "trumpet": "1f3ba",
        "drum": "1f941",
        "saxophone": "1f3b7",
    },
    "sport": {
        "football": "26bd",
        "basketball": "1f3c0",
        "tennis": "1f3be",
        "rugby ball": "1f3c8",
        "bowling": "1f3b3",
    },
    "nature": {
        "rose": "1f339",
        "tulip": "1f337",
        "sunflower": "1f33b",
        "cactus": "1f335",
        "tree": "1f332",
        "maple leaf": "1f341",
        "sun": "2600",
        "cloud": "2601",
        "umbrella": "2602",
        "rainbow": "1f308",
        "fire": "1f525",
    },
    "clothing": {
        "crown": "1f451",
        "top hat": "1f3a9",
        "necktie": "1f454",
        "shirt": "1f455",
        "jeans": "1f456",
        "dress": "1f457",
        "high heels": "1f460",
        "glasses": "1f453",
    },
    "object": {
        "key": "1f511",
        "lock": "1f512",
        "light bulb": "1f4a1",
        "chair": "1fa91",
        "broom": "1f9f9",
        "camera": "1f4f7",
        "telephone": "260e",
        "television": "1f4fa",
        "clock": "23f0",
        "pencil": "270f",
        "hourglass": "231b",
    },
}


@dataclass(frozen=True)
class Name:
    """One thing the model can draw."""

    text: str
    group: str
    codepoints: str
    """Lower-case hexadecimal Unicode sequence without variation selectors; the key into every artwork package."""


NAMES: tuple[Name, ...] = tuple(
    Name(text, group, code) for group, members in _GROUPS.items() for text, code in members.items()
)


def names_of(group: str) -> list[str]:
    """The names of one group, in declaration order."""
    return list(_GROUPS[group])


def article(noun: str) -> str:
    """The noun with its indefinite article: ``an axe``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(name: str, style: str | None = None) -> str:
    """The canonical caption: ``a dagger emoji in noto style``; ``style`` is a key of :data:`STYLES` or None."""
    return f"{article(name)} emoji" + (f" in {STYLES[style]} style" if style else "")


def captions(name: Name, style: str) -> list[tuple[float, str]]:
    """Weighted captions of one training image; the group's word is among them so that ``a weapon`` means something."""
    words = STYLES[style]
    return [
        (0.45, caption(name.text, style)),
        (0.15, f"{article(name.text)} in {words} style"),
        (0.15, caption(name.text)),
        (0.10, f"{name.text}, {words}"),
        (0.05, name.text),
        (0.10, f"{article(name.group)} emoji in {words} style"),
    ]
