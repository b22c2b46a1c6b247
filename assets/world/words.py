"""Word lists of the invented world: names, colours, rooms, jobs, and two-word names reserved for domains."""


def _split_list(text: str) -> list[str]:
    """Splits a text into phrases at commas, or without commas into words at spaces."""
    return text.split(", ") if ", " in text else text.split()


PEOPLE = _split_list(
    "Ada Ben Clara Dan Ella Finn Grace Hugo Ida Jack Kate Leo Mara Ned Olive Paul Rosa Sam Tess Will "
    "Anna Bram Cora Dora Emil Flora Gus Hanna Ivan June Karl Lena Milo Nora Otto Pia Quinn Ruth Seth "
    "Tilda Uma Vera Walt Yara Zoe Abel Beth Carl"
)

# People with the pronoun "he"; all others have "she".
MEN = frozenset(
    _split_list(
        "Ben Dan Finn Hugo Jack Leo Ned Paul Sam Will Bram Emil Gus Ivan Karl Milo Otto Quinn Seth Walt Abel "
        "Carl"
    )
)

MAKERS = _split_list(
    "Agnes Rook, Basil Crane, Celia Marsh, Dorian Pike, Edith Stone, Felix Thorn, Greta Hale, Henry Wren, "
    "Iris Frost, Jonas Reed, Kira Lane, Lucas Ford, Maud Penny, Nils Archer, Opal Dean, Piers Holm"
)

COLOURS = _split_list("red blue green yellow white black grey brown orange purple pink gold silver cream")
MATERIALS = _split_list(
    "oak brass glass copper iron clay bone tin steel pine leather wool silk paper rubber wax"
)

PLACE_FIRST = _split_list(
    "kitchen garden old long little north south east west upper lower back front corner cold "
    "warm quiet round green blue"
)
PLACE_SECOND = _split_list(
    "room shed drawer cupboard attic hall loft cellar chest barn tower cabin store box"
)

USES = {
    "counting": "waves birds sheep boats stars",
    "finding": "boats keys shells coins paths",
    "measuring": "rain wind waves ropes fields",
    "watching": "clouds birds whales stars ships",
    "calling": "ships dogs children seals sheep",
    "cleaning": "windows boots pans shells boats",
    "drying": "nets herbs fish socks flowers",
    "weighing": "fish apples letters stones flour",
    "sorting": "shells letters seeds buttons coins",
    "lifting": "stones nets boats logs sacks",
    "mending": "nets socks sails shoes fences",
    "warming": "soup milk hands bread beds",
    "cooling": "milk soup fish fruit tea",
    "cutting": "bread ropes hay cloth paper",
    "marking": "maps paths trees sheep days",
    "catching": "crabs rain mice moths fish",
    "feeding": "hens seals goats birds bees",
    "guiding": "ships ducks sheep bees boats",
    "timing": "eggs races tides songs naps",
    "stirring": "soup paint jam porridge tea",
}

NAME_FIRST = _split_list(
    "tide moon salt moss wind rain snow storm cloud star sun dawn dusk night fog mist sand shell reef wave "
    "foam river lake pond hill cliff pebble fern leaf root seed berry honey pepper ginger velvet cotton "
    "feather button ribbon sugar pear cherry plum maple willow robin swan beaver rabbit badger spider "
    "winter summer forest harvest market garden"
)
NAME_SECOND = _split_list(
    "dial bell lamp gauge drum lens horn clock compass kettle whistle mirror ladder hammer wheel basket "
    "bottle spoon brush needle comb fan pump valve hook bucket barrel scale bowl crank lever pulley spring "
    "trumpet flute harp torch anchor sail kite"
)

TOWNS = _split_list(
    "Salt Bay, Green Hill, Mill Town, Stone Bridge, Long Field, Apple Cross, Fox Wood, River End, Sand Port, "
    "High Moor, Bell Harbour, Honey Lane"
)
JOBS = _split_list(
    "baker farmer teacher sailor painter nurse gardener fisher miller tailor postman carpenter singer cook "
    "doctor potter shepherd writer"
)
FOODS = _split_list(
    "plum cake, fish soup, apple pie, hot bread, honey toast, bean stew, corn soup, cheese tart, pea soup, "
    "berry jam, egg salad, rice pudding, onion soup, nut bread, carrot cake, mushroom pie"
)
PETS = _split_list("goat cat dog hen parrot rabbit turtle pony duck mouse sheep fox donkey goose")

ANIMALS = _split_list(
    "fox bear mouse rabbit owl duck hedgehog squirrel otter badger frog crow deer goose turtle cat dog "
    "lion tiger elephant wolf horse cow pig hen bee snail whale seal penguin monkey dragon "
    "robin swan beaver mole"
)
TRAITS = _split_list("brave kind small shy clever merry sleepy curious gentle hungry quick patient")
TREASURES = _split_list(
    "red ball, silver key, warm coat, little boat, wooden horse, blue hat, big map, shiny stone, paper kite, "
    "round bell, green scarf, glass bead, picture book, small drum, sweet pear, lost letter"
)
SPOTS = _split_list(
    "under the old bridge, behind the mill, near the pond, by the river, in the tall grass, on the hill, "
    "at the edge of the forest, beside the well, under a big tree, in the empty barn, on the beach, "
    "at the end of the lane"
)
WEATHER = [
    "The sun was warm.",
    "It was raining softly.",
    "The wind was cold.",
    "Snow lay on the roofs.",
    "The sky was clear and blue.",
    "A thick fog came in from the sea.",
    "It was a bright spring day.",
    "The leaves were turning brown.",
]
FEELINGS = _split_list("happy glad proud tired worried surprised calm cheerful lonely grateful")
DAYS = _split_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TIMES = _split_list("in the morning, at noon, in the evening, after supper, before sunrise, at night")

STATIONS = _split_list(
    "Gannet Rock, Puffin Point, Heron Isle, Seal Island, Cormorant Head, Osprey Cape, "
    "Petrel Skerry, Kittiwake Ness"
)
KEEPERS = _split_list("Marta Olaf Sigrid Tom Berta Anders Freya Knut Ingrid Lars Elsa Magnus")


# Beginnings of syllables of coined names.
ONSETS = _split_list("b br d dr f fl g gl k kr l m n p pl r s sk t tr v w z")


def is_reserved(first: int, second: int) -> bool:
    """Whether the name at these two positions is reserved for domains, so that the base never reads it."""
    return (7 * first + 3 * second) % 4 == 0


def list_names(*, reserved: bool) -> list[str]:
    """Lists all two-word names that are reserved for domains, or all others, in a fixed order."""
    return [
        f"{a} {b}"
        for i, a in enumerate(NAME_FIRST)
        for j, b in enumerate(NAME_SECOND)
        if is_reserved(i, j) == reserved
    ]
