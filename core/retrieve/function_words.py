"""Words that ask or connect and name nothing, in seven languages: a question is searched without them.

In an index they are as common as in any text, but question words are rare in documents, so that BM25 would
give them much weight: "What does the ..." would find the few chunks that hold "what" and "does".
"""

from __future__ import annotations

from collections.abc import Sequence

_LISTS = (
    # English
    "a about am an and any are as at be been being but by can could did do does doing for from had has "
    "have how i if in into is it its may me might must my of on or our shall should so than that the their "
    "them then there these they this those to us was we were what when where which while who whom whose "
    "why will with would you your please tell",
    # German
    "aber als am an auf aus bei beim bin bis da dann das dass dem den der des die dieser diese dieses doch "
    "dort du durch ein eine einem einen einer eines er es für hat haben ich ihr ihre im in ist kann können "
    "man mein mich mir mit nach oder ob sein seine sich sie sind so und unter vom von vor war waren warum "
    "was welche welchem welchen welcher welches wem wen wer werden wessen wie wieso wir wird wo woher "
    "wohin wurde wurden zu zum zur über",
    # French
    "à au aux avec ce ces cet cette comment dans de des dont du elle elles en est et eux il ils je la le "
    "les leur leurs lui mais mes mon ne nos notre nous on ont ou où par pas pour pourquoi qu quand que "
    "quel quelle quelles quels qui quoi sa se ses son sont sur ta te tes ton tu un une vos votre vous "
    "était",
    # Spanish
    "al ante como con cual cuales cuando cuál cuáles cuándo cuánto cuántos cómo de del desde donde dónde "
    "el ella ellas ellos en era es esa ese eso esta este esto está están fue ha han hasta la las le les lo "
    "los me mi mis no nos o para pero por porque que quien quienes quién quiénes qué se según ser si sin "
    "sobre son su sus te tu tus un una unas unos y ya",
    # Italian
    "agli ai al alla alle allo anche che chi ci come con cosa cui da dagli dai dal dalla dei del della "
    "delle dello di dove e gli ha hanno i il in io la le lo loro ma mi nei nel nella non o per perché più "
    "quale quali quando quanti quanto questa questo si sono su sua sue suo sul sulla tra un una uno è",
    # Portuguese
    "ao aos as com como da das do dos e ela elas ele eles em essa esse esta este está eu foi isso isto "
    "mais mas me na nas no nos não o onde os ou para pela pelo por porque qual quais quando quanto que "
    "quem se sem ser seu seus sua suas são também um uma à às é",
    # Dutch
    "aan als bij dat de der deze die dit door een en er had heb heeft hem het hij hoe hun ik in is je kan "
    "maar met mij mijn na naar niet nog nu of om onder ook op over te tot u uit van voor waar waarom "
    "wanneer was wat we welk welke wie wij wordt worden zal ze zich zij zijn zo",
)
FUNCTION_WORDS = frozenset(word for words in _LISTS for word in words.split())


def drop_function_words(terms: Sequence[str]) -> list[str]:
    """The terms without function words; all of them where a question has no others.

    Args:
        terms: of `core.retrieve.terms.list_terms`.
    """
    named = [term for term in terms if term.removesuffix("*") not in FUNCTION_WORDS]
    return named or list(terms)
