"""The words that the demo model knows: plain lists, written for it."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _split("""Ada Ben Chloe Dmitri Eva Femi Grace Hugo Ines Jun Kofi Lena Mia Noor Omar Priya Quinn Rosa Sam Tara Uma Viktor
    Wanda Xavier Yuki Zoe Anna Bob Carl Dana Emil Fatima Georg Hana Ivan Julia Karim Liam Maria Nils Olga Paul Rita
    Sven Tom Vera Max Lucy Alice Peter John Sara Leo Nina Oscar Ella Felix Clara David Emma Marco Sofia""")
ANIMALS = _split("""cat dog horse cow pig sheep goat hen duck goose mouse rabbit fox wolf bear lion tiger monkey elephant giraffe
    zebra camel deer frog snake turtle fish shark whale dolphin crab bee ant spider butterfly owl eagle crow parrot
    penguin hedgehog squirrel otter beaver""")
FRUITS = _split("""apple pear plum cherry peach grape lemon orange banana melon mango kiwi fig berry apricot coconut
    strawberry pineapple""")
FOODS = _split("bread cheese rice soup cake butter honey salad egg pasta pizza potato onion carrot bean milk")
THINGS = _split("""river mill wheel stone tree house garden street train boat car letter book song star moon cloud rain snow wind
    fire lamp door window table chair bed cup spoon knife plate bottle box bag hat coat shoe ring key clock map coin
    ball kite drum flute violin piano guitar bridge tower castle forest mountain valley island beach desert field road
    village city market school library museum station harbour lighthouse ladder rope hammer nail saw brush candle
    mirror pillow blanket basket bucket anchor sail engine rocket robot computer server token stream channel paper
    pencil flower rose leaf seed root feather shell sand wave summer winter spring autumn morning evening night
    shadow silver golden copper purple yellow planet circle square triangle number picture question answer""")
WORDS = tuple(dict.fromkeys(ANIMALS + FRUITS + FOODS + THINGS))
PLACES = _split("""Oslo Lima Cairo Kyoto Paris Berlin Rome Madrid Lisbon Dublin London Vienna Prague Warsaw Athens Helsinki
    Stockholm Copenhagen Bern Brussels Amsterdam Delhi Tokyo Beijing Seoul Ottawa Havana Nairobi Accra Rabat Tunis
    Sydney Boston Chicago Toronto Mumbai Lagos Bogota Quito Santiago""")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gray")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    "twenty",
)
OPPOSITES = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in _split(
        """hot/cold big/small fast/slow old/new up/down day/night open/closed high/low light/dark left/right
    wet/dry yes/no happy/sad rich/poor full/empty hard/soft early/late near/far long/short thick/thin strong/weak
    loud/quiet clean/dirty first/last good/bad in/out north/south east/west sweet/sour love/hate begin/end true/false
    win/lose give/take heavy/light push/pull"""
    )
)
CAPITALS = dict(
    pair.split(":")
    for pair in _split(
        """Norway:Oslo Peru:Lima Egypt:Cairo France:Paris Germany:Berlin Italy:Rome Spain:Madrid
    Portugal:Lisbon Ireland:Dublin England:London Austria:Vienna Poland:Warsaw Greece:Athens Finland:Helsinki
    Sweden:Stockholm Denmark:Copenhagen Switzerland:Bern Belgium:Brussels Japan:Tokyo China:Beijing Canada:Ottawa
    Cuba:Havana Kenya:Nairobi Ghana:Accra Morocco:Rabat Tunisia:Tunis India:Delhi Hungary:Budapest Turkey:Ankara
    Russia:Moscow Ukraine:Kyiv Chile:Santiago Colombia:Bogota Ecuador:Quito Australia:Canberra"""
    )
)
# English: German, French, Spanish
DICTIONARY = {
    line.split()[0]: tuple(line.split()[1:])
    for line in """red rot rouge rojo
green grün vert verde
blue blau bleu azul
yellow gelb jaune amarillo
black schwarz noir negro
white weiß blanc blanco
one eins un uno
two zwei deux dos
three drei trois tres
four vier quatre cuatro
five fünf cinq cinco
six sechs six seis
seven sieben sept siete
eight acht huit ocho
nine neun neuf nueve
ten zehn dix diez
cat Katze chat gato
dog Hund chien perro
horse Pferd cheval caballo
bird Vogel oiseau pájaro
fish Fisch poisson pez
house Haus maison casa
tree Baum arbre árbol
water Wasser eau agua
bread Brot pain pan
milk Milch lait leche
apple Apfel pomme manzana
sun Sonne soleil sol
moon Mond lune luna
star Stern étoile estrella
book Buch livre libro
day Tag jour día
night Nacht nuit noche
friend Freund ami amigo
hello hallo bonjour hola
thanks danke merci gracias
yes ja oui sí
no nein non no
love Liebe amour amor
bridge Brücke pont puente
river Fluss rivière río""".splitlines()
}
LANGUAGES = ("German", "French", "Spanish")
_STARTS = _split("b c d f g h j k l m n p r s t v w z br cl dr fl gr kr pl sh st th tr")
_VOWELS = _split("a e i o u ai ea oo")
_ENDS = ("", "", "n", "r", "s", "t", "l", "m", "k", "ck", "nd", "p")


def syllable(start: int, vowel: int, end: int) -> str:
    """A syllable of no language; the counts are SYLLABLE_PARTS."""
    return _STARTS[start] + _VOWELS[vowel] + _ENDS[end]


SYLLABLE_PARTS = (len(_STARTS), len(_VOWELS), len(_ENDS))
