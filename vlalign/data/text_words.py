"""Word lists of the rules that make hard negatives: English, lower case, what captions are full of.

Bounded on purpose: a rule that does not know a word leaves the caption alone.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Attributes by what they tell: one replaces another of its line.
ATTRIBUTES = tuple(
    _words(line)
    for line in (
        "red orange yellow green blue purple pink brown black white grey gray golden silver beige "
        "turquoise violet",
        "big small large little tiny huge giant",
        "tall short",
        "long brief",
        "wide narrow thick thin",
        "old new young",
        "round square triangular rectangular oval",
        "wooden metal plastic glass stone leather paper brick concrete",
        "striped spotted checkered plain",
        "happy sad angry",
        "wet dry",
        "hot cold",
        "open closed",
        "empty full",
        "clean dirty",
        "dark bright light",
        "male female",
        "sunny cloudy rainy snowy foggy",
        "one two three four five six seven eight nine ten",
        "shiny dull",
        "soft hard",
        "smooth rough",
        "curly straight",
        "loud quiet",
        "fast slow",
        "heavy lightweight",
        "modern ancient",
        "fresh rotten",
        "raw cooked",
        "beautiful ugly",
        "colorful monochrome",
    )
)

_OPPOSITES = """to the left of | to the right of
on the left of | on the right of
left of | right of
on the left side of | on the right side of
on the left | on the right
to the left | to the right
on top of | underneath
above | below
over | under
beneath > on top of
atop > beneath
in front of | behind
ahead of > behind
inside of | outside of
inside | outside
into | out of
within > outside
near | far from
next to > far away from
beside > far away from
close to | far away from
on > under
in > outside
onto > off
upon > under
up | down
before | after
towards | away from
toward > away from
at the top of | at the bottom of
entering | leaving
pushing | pulling"""


def _opposites() -> dict[str, str]:
    table = {}
    for line in _OPPOSITES.splitlines():
        both = " | " in line
        one, other = line.split(" | " if both else " > ")
        table[one] = other
        if both:
            table[other] = one
    return table


# A relation and its opposite; where the lines above have `>`, not the other way round.
OPPOSITE = _opposites()

# Relations between two things beside those above; what stands around them can be exchanged.
RELATIONS = _words(
    """
against around across along among between by following facing touching holding riding
wearing chasing eating watching carrying leading feeding petting hugging kissing hitting
kicking throwing catching biting licking pulling pushing covering surrounding containing
with without rides holds wears chases eats watches carries leads feeds pets hugs kisses hits
kicks throws catches bites licks pulls pushes covers surrounds contains follows faces
touches
"""
)

DETERMINERS = frozenset(
    _words("a an the this that these those his her its their my your our some any each every no")
)
AUXILIARIES = frozenset(
    _words(
        """
is are was were be been being has have had can could will would should may might must do
does did
"""
    )
)
# Verbs that stand between a thing and where it is.
POSTURES = frozenset(
    _words(
        """
sits stands lies lays sleeps rests walks runs jumps hangs flies plays leans grows floats
swims parks waits sit stand lie lay sleep rest walk run jump hang fly play parked seated
placed located mounted situated
"""
    )
)
FUNCTION_WORDS = (
    DETERMINERS
    | AUXILIARIES
    | frozenset(
        _words(
            """
of in on at to for from by with without and or but nor as than then so if while when where
which who whom whose what how there here it he she they them him we us you i me not near
next beside behind above below over under into onto out off up down inside outside between
among through across along around against before after during until about like very too also
just only both all
"""
        )
    )
)

CONTRACTIONS = {"can't": "can", "won't": "will", "cannot": "can", "shan't": "shall"}
