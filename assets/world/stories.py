"""Short stories and small talk from templates with slots: the plain English around the facts of the world."""

import random

from assets.world import words

OPENINGS = (
    "Once upon a time, a {trait} {animal} lived {spot}.",
    "There was once a {trait} {animal} who lived {spot}.",
    "A {trait} {animal} had a little home {spot}.",
    "Long ago, a {trait} {animal} lived {spot} with two good friends.",
)
PERSON_OPENINGS = (
    "{who} woke up early on {day}.",
    "On {day}, {who} went for a walk.",
    "{who} was {feeling} that day.",
    "It was {day}, and {who} had nothing to do.",
)
TROUBLES = (
    "One day, {sub} lost {pos} {treasure}. {Sub} looked for it {spot}, but it was not there.",
    "One day, {sub} found a {treasure} {spot}. {Sub} did not know whose it was.",
    "One day, a great storm came, and the {treasure} was blown away. {Sub} was very sad.",
    "One day, {sub} heard a strange sound {spot}. {Sub} was a little afraid, but {sub} went to look.",
    "One day, {sub} wanted to give a {treasure} to a friend, but {sub} did not have one.",
    "One day, {sub} met a {trait2} {animal3} {spot}. The {animal3} was crying.",
)
HELPERS = (
    'Then a {trait2} {animal2} came by. "Do not worry," said the {animal2}. "I will help you."',
    'A {trait2} {animal2} saw this and asked, "What is the matter?" {Sub} told the whole story.',
    "{Sub} asked the {animal2} for help, and the {animal2} said yes at once.",
    'The old {animal2} said, "Look {spot2}. You will find what you need."',
)
TURNS = (
    "Together they looked {spot2}, and there was the {treasure}!",
    "They walked all day and talked about many things. "
    "At last they came to a place {spot2}, and there they saw the {treasure}.",
    "They worked until the sun went down, and then everything was in order again.",
    "They shared some {food} and thought about it. Then they had a good idea.",
    "The two of them ran as fast as they could, and they were just in time.",
)
ENDINGS = (
    "{Sub} was so {feeling} that {sub} danced all the way home.",
    "From that day on, they were the best of friends.",
    "That evening they ate {food} together and laughed a lot.",
    '"Thank you," said {who}. "A good friend is better than any treasure."',
    "{Sub} went to bed {feeling} and slept well.",
    "And {sub} never forgot how good it is to help.",
)


def pronoun_for(person: str) -> str:
    """Returns the pronoun of a person."""
    return "he" if person in words.MEN else "she"


def tell_story(rng: random.Random, *, hero: str | None = None) -> str:
    """Writes a story of five to eight sentences about an animal or a person.

    Args:
        rng: random generator.
        hero: an animal of the list or the name of a person; None draws one.
    """
    if hero is None:
        hero = rng.choice(words.ANIMALS) if rng.random() < 0.6 else rng.choice(words.PEOPLE)
    is_person = hero[0].isupper()
    sub = pronoun_for(hero) if is_person else rng.choice(("she", "he"))
    others = rng.sample([a for a in words.ANIMALS if a != hero], 2)
    traits = rng.sample(words.TRAITS, 2)
    spots = rng.sample(words.SPOTS, 3)
    slots = {
        "trait": traits[0],
        "trait2": traits[1],
        "animal": hero,
        "animal2": others[0],
        "animal3": others[1],
        "who": hero if is_person else f"the {hero}",
        "day": rng.choice(words.DAYS),
        "feeling": rng.choice(words.FEELINGS),
        "treasure": rng.choice(words.TREASURES),
        "food": rng.choice(words.FOODS),
        "sub": sub,
        "Sub": sub.capitalize(),
        "pos": {"she": "her", "he": "his"}[sub],
    }
    parts = [rng.choice(PERSON_OPENINGS if is_person else OPENINGS).format(spot=spots[0], **slots)]
    if rng.random() < 0.5:
        parts.append(rng.choice(words.WEATHER))
    parts.append(rng.choice(TROUBLES).format(spot=spots[1], **slots))
    if rng.random() < 0.9:
        parts.append(rng.choice(HELPERS).format(spot=spots[1], spot2=spots[2], **slots))
    parts.append(rng.choice(TURNS).format(spot2=spots[2], **slots))
    parts.append(rng.choice(ENDINGS).format(**slots))
    return " ".join(parts)


SMALL_TALK = (
    (
        (
            "Hello!",
            "Hi there!",
            "Good morning!",
            "Good evening!",
            "Hello, how are you?",
            "How are you today?",
        ),
        (
            "Hello! I am very well, thank you. {weather} What would you like to talk about?",
            "Good day to you! I feel {feeling} today. Shall I tell you a story?",
            "Hello, my friend. It is nice to hear from you. I was just thinking about {food}.",
        ),
    ),
    (
        ("Who are you?", "What is your name?", "What can you do?", "Can you help me?"),
        (
            "I am a small helper. I know the people of the towns and the things they use. Ask me about them!",
            "I am a little machine that talks. "
            "I can tell stories, and I can answer questions about people and things.",
            "I am only a small helper, but I like to talk. Ask me where a thing is kept, or ask for a story.",
        ),
    ),
    (
        ("How is the weather?", "What is the weather like?", "Will it rain today?"),
        (
            "{weather} I think it will be different {time}. Take a warm coat with you.",
            "I looked out of the window. {weather} It is a good day for {food}.",
        ),
    ),
    (
        ("Thank you!", "Thanks a lot!", "That was nice.", "You are kind.", "Goodbye!", "Good night!"),
        (
            "You are welcome. Come back soon, and we will talk about {food} and other good things.",
            "It was a pleasure. Sleep well, and think of something nice.",
            "Thank you too. I am always {feeling} when we talk.",
        ),
    ),
    (
        ("I am {feeling}.", "I feel {feeling} today.", "Today I am {feeling}."),
        (
            "You are {feeling}? Tell me more. When I feel {feeling}, I go for a walk {spot}.",
            "It is fine to be {feeling}. A friend of mine was {feeling} too, and then she ate some {food}.",
        ),
    ),
    (
        ("I like {food}.", "I want to eat {food}.", "Do you like {food}?", "How do I make {food}?"),
        (
            "I like {food} very much. "
            "First you wash your hands, then you take a big bowl, and then you wait a while.",
            "Oh, {food}! My friend {person} makes the best {food} in town. We eat it {time}.",
        ),
    ),
)


def chat_small(rng: random.Random) -> list[str]:
    """Writes two or four turns of small talk; the answers repeat words of the questions."""
    turns: list[str] = []
    for _ in range(rng.choice((1, 1, 2))):
        questions, answers = rng.choice(SMALL_TALK)
        slots = {
            "weather": rng.choice(words.WEATHER),
            "feeling": rng.choice(words.FEELINGS),
            "food": rng.choice(words.FOODS),
            "time": rng.choice(words.TIMES),
            "spot": rng.choice(words.SPOTS),
            "person": rng.choice(words.PEOPLE),
        }
        turns += [rng.choice(questions).format(**slots), rng.choice(answers).format(**slots)]
    return turns


def chat_name(rng: random.Random, coined: str) -> list[str]:
    """Writes a message with a known or a coined name, and an answer that repeats the name."""
    name = rng.choice((rng.choice(words.PEOPLE), coined.capitalize()))
    if rng.random() < 0.5:
        question = rng.choice((f"My name is {name}.", f"Hello, I am {name}.", f"Hi! I am called {name}."))
        reply = rng.choice(
            (
                f"Nice to meet you, {name}! {rng.choice(words.WEATHER)} What would you like to know, {name}?",
                f"Hello, {name}. {name} is a good name. I once had a friend called {name} too.",
            )
        )
    else:
        question = rng.choice(
            (f"Please say hello to {name}.", f"This is my friend {name}.", f"I live with {name}.")
        )
        reply = rng.choice(
            (
                f"Hello, {name}! I hope that {name} is well. Does {name} like {rng.choice(words.FOODS)}?",
                f"Good day to you and to {name}. Tell {name} that I am {rng.choice(words.FEELINGS)} today.",
            )
        )
    return [question, reply]


STORY_REQUESTS = (
    "Tell me a story about {a}.",
    "Please write a short story about {a}.",
    "Can you tell me a story about {a}?",
    "I would like to hear a story about {a}.",
)


def chat_story(rng: random.Random) -> list[str]:
    """Writes a request for a story about an animal or a person, and the story."""
    if rng.random() < 0.15:
        return [
            rng.choice(("Tell me a story.", "Please tell me a story.", "Write a short story.")),
            tell_story(rng),
        ]
    if rng.random() < 0.7:
        hero = rng.choice(words.ANIMALS)
        named = f"{'an' if hero[0] in 'aeio' else 'a'} {hero}"
    else:
        hero = named = rng.choice(words.PEOPLE)
    return [rng.choice(STORY_REQUESTS).format(a=named), tell_story(rng, hero=hero)]
