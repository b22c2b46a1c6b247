"""The words of the invented world: names, colours, rooms, trades and the combinations they allow.

Knows pools of plain words and which two-word names are kept back for domains. Knows no sentences.
"""


def _listed(text: str) -> list[str]:
    """Words divided by spaces, or phrases divided by commas."""
    return text.split(", ") if ", " in text else text.split()


PEOPLE = _listed(
    "Ada Ben Clara Dan Ella Finn Grace Hugo Ida Jack Kate Leo Mara Ned Olive Paul Rosa Sam Tess Will "
    "Anna Bram Cora Dora Emil Flora Gus Hanna Ivan June Karl Lena Milo Nora Otto Pia Quinn Ruth Seth "
    "Tilda Uma Vera Walt Yara Zoe Abel Beth Carl"
)

# Who a story calls "he"; all others are "she".
MEN = frozenset(
    _listed(
        "Ben Dan Finn Hugo Jack Leo Ned Paul Sam Will Bram Emil Gus Ivan Karl Milo Otto Quinn Seth Walt Abel Carl"
    )
)

MAKERS = _listed(
    "Agnes Rook, Basil Crane, Celia Marsh, Dorian Pike, Edith Stone, Felix Thorn, Greta Hale, Henry Wren, "
    "Iris Frost, Jonas Reed, Kira Lane, Lucas Ford, Maud Penny, Nils Archer, Opal Dean, Piers Holm"
)

COLOURS = _listed("red blue green yellow white black grey brown orange purple pink gold silver cream")
MATERIALS = _listed("oak brass glass copper iron clay bone tin steel pine leather wool silk paper rubber wax")

PLACE_FIRST = _listed(
    "kitchen garden old long little north south east west upper lower back front corner cold warm quiet round green blue"
)
PLACE_SECOND = _listed("room shed drawer cupboard attic hall loft cellar chest barn tower cabin store box")

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

NAME_FIRST = _listed(
    "tide moon salt moss wind rain snow storm cloud star sun dawn dusk night fog mist sand shell reef wave "
    "foam river lake pond hill cliff pebble fern leaf root seed berry honey pepper ginger velvet cotton "
    "feather button ribbon sugar pear cherry plum maple willow robin swan beaver rabbit badger spider "
    "winter summer forest harvest market garden"
)
NAME_SECOND = _listed(
    "dial bell lamp gauge drum lens horn clock compass kettle whistle mirror ladder hammer wheel basket "
    "bottle spoon brush needle comb fan pump valve hook bucket barrel scale bowl crank lever pulley spring "
    "trumpet flute harp torch anchor sail kite"
)

TOWNS = _listed(
    "Salt Bay, Green Hill, Mill Town, Stone Bridge, Long Field, Apple Cross, Fox Wood, River End, Sand Port, High Moor, Bell Harbour, Honey Lane"
)
JOBS = _listed(
    "baker farmer teacher sailor painter nurse gardener fisher miller tailor postman carpenter singer cook doctor potter shepherd writer"
)
FOODS = _listed(
    "plum cake, fish soup, apple pie, hot bread, honey toast, bean stew, corn soup, cheese tart, pea soup, "
    "berry jam, egg salad, rice pudding, onion soup, nut bread, carrot cake, mushroom pie"
)
PETS = _listed("goat cat dog hen parrot rabbit turtle pony duck mouse sheep fox donkey goose")

ANIMALS = _listed(
    "fox bear mouse rabbit owl duck hedgehog squirrel otter badger frog crow deer goose turtle cat dog lion tiger "
    "elephant wolf horse cow pig hen bee snail whale seal penguin monkey dragon robin swan beaver mole"
)
TRAITS = _listed("brave kind small shy clever merry sleepy curious gentle hungry quick patient")
TREASURES = _listed(
    "red ball, silver key, warm coat, little boat, wooden horse, blue hat, big map, shiny stone, paper kite, "
    "round bell, green scarf, glass bead, picture book, small drum, sweet pear, lost letter"
)
SPOTS = _listed(
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
FEELINGS = _listed("happy glad proud tired worried surprised calm cheerful lonely grateful")
DAYS = _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TIMES = _listed("in the morning, at noon, in the evening, after supper, before sunrise, at night")

STATIONS = _listed(
    "Gannet Rock, Puffin Point, Heron Isle, Seal Island, Cormorant Head, Osprey Cape, Petrel Skerry, Kittiwake Ness"
)
KEEPERS = _listed("Marta Olaf Sigrid Tom Berta Anders Freya Knut Ingrid Lars Elsa Magnus")


def is_kept_back(first: int, second: int) -> bool:
    """Whether the name at these two positions belongs to domains only, so that the base never meets it."""
    return (7 * first + 3 * second) % 4 == 0


def list_names(*, kept_back: bool) -> list[str]:
    """All two-word names on one side of the line, in a fixed order."""
    return [
        f"{a} {b}"
        for i, a in enumerate(NAME_FIRST)
        for j, b in enumerate(NAME_SECOND)
        if is_kept_back(i, j) == kept_back
    ]
