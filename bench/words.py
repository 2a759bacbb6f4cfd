"""Short common English words: random text is drawn from them, because a large vocabulary has most of them as one
token, so that the length of a text is nearly its number of words."""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """
    able about above across action active after again against age agree air all allow alone along also always
    among amount animal another answer any appear apple area arm around arrive art ask away back bad bag ball
    bank base bear beat became because become bed before began begin behind believe below beside best better
    between big bird black blood blow blue board boat body bone book born both bottom bought box branch bread
    break bring broad broke brother brought brown build burn busy but buy call came camp car card care carry
    case cat catch caught cause cell center century certain chair chance change charge chart check chief child
    choose circle city claim class clean clear climb clock close clothe cloud coast coat cold collect color
    column come common company compare complete condition connect consider contain continue control cook cool
    copy corn corner correct cost cotton could count country course cover cow create crop cross crowd cry
    current cut dance danger dark day dead deal dear death decide deep degree depend describe desert design
    did differ direct discuss distant divide doctor does dog dollar done door double down draw dream dress
    drink drive drop dry during each ear early earth ease east eat edge effect egg eight either else end enemy
    energy engine enough enter equal even evening event ever every exact example except excite exercise expect
    experience eye face fact fair fall family famous far farm fast father favor fear feed feel feet fell felt
    few field fight figure fill final find fine finger finish fire first fish fit five flat floor flow flower
    fly follow food foot force forest form forward found four free fresh friend from front fruit full fun game
    garden gas gather gave general gentle get girl give glad glass go gold gone good got govern grand grass
    gray great green grew ground group grow guess guide gun had hair half hand happen happy hard has hat have
    head hear heart heat heavy held help her here high hill him his history hit hold hole home hope horse hot
    hour house how huge human hundred hunt hurry
    """.split()  # noqa: SIM905 - one word per string would take four hundred lines
)
