"""Sentence templates of biographies: the leads, which are the texts between the name or pronoun and the value.

A sentence is "James Lee Smith" + lead + " " + value + ".", or begins with a pronoun instead of the name. Every lead
therefore begins with a verb in the past tense, whose form is the same after a name and after "They". No lead is a
prefix of another one, so the end of a lead is unambiguous and the loss of a value does not include the choice of the
template.
"""


def _leads(text: str) -> tuple[str, ...]:
    return tuple(f" {' '.join(lead.split())}" for lead in text.split(";"))


LEADS: dict[str, tuple[str, ...]] = {
    "birth_date": _leads(
        """
        began life on; breathed for the first time on; came into being on; came into the world on;
        carried a passport with the birth date; celebrated every birthday in memory of; counted the years from;
        cried for the first time on; delighted two parents by arriving on; drew a first breath on;
        enlarged the family on; entered the world on; filled in the date of birth as; gave the day of birth as;
        joined the living on; let out a first cry on; listed the birth date as; made a first appearance on;
        opened both eyes on; reached this world on; saw the light of day on; signed papers with the birth date;
        started out in life on; swore under oath to the birth date
        """
    ),
    "birth_city": _leads(
        """
        began life in; breathed for the first time in; came into the world in; came originally from;
        carried a birth certificate from; drew a first breath in; entered the world in; filled in the birthplace as;
        gave the place of birth as; grew up telling stories of their native; hailed from;
        kept a map of their native city; lay in a cradle in; learned to crawl in; left the maternity ward in;
        let out a first cry in; listed the birthplace as; looked back fondly on their native city;
        made a first appearance in; opened both eyes in; remained a native of; saw the light of day in;
        spent the first night of life in; started out in life in; traced the beginning of life to
        """
    ),
    "university": _leads(
        """
        attended lectures at; belonged to the alumni of; chose a field of study at; completed a course of study at;
        crammed for examinations at; crossed the graduation stage at; earned a degree from; enrolled at;
        finished an education at; gained admission to; graduated from; heard the great professors of;
        held a diploma from; joined the student body of; lived on the campus of; matriculated at; owed an education to;
        passed the finals at; pursued higher learning at; read in the library of; studied at; took a degree from;
        walked the lecture halls of; won a scholarship to; wrote a thesis at
        """
    ),
    "employer": _leads(
        """
        accepted an offer from; built a career with; called their employer; collected wages from; commuted daily to;
        drew a salary from; earned a living at; found employment with; gave their employer as; had a job at;
        held a post at; joined the staff of; kept an office at; made a career at; named as their employer;
        put in long hours for; received a monthly cheque from; represented the firm of; rose through the ranks of;
        served the company of; signed an employment contract with; spent the working week at; took a position with;
        went to work each morning for; worked for
        """
    ),
}
"""Leads of each attribute."""

_RELATION_FRAMES = _leads(
    """
    answered a letter from their {}; bowed in the street to their {}; called their {}; dreamt one night of their {};
    exchanged gifts with their {}; filled a diary with remarks on their {}; gave the name of their {} as;
    had as their {}; identified their {} as; introduced their {} as; kept a photograph of their {};
    knew their {} by the name of; lent an umbrella to their {}; listed as their {}; lived near their {};
    named as their {}; played chess with their {}; pointed out their {}; posed for a portrait with their {};
    quarrelled now and then with their {}; received a visit from their {}; sat at dinner beside their {};
    shook hands with their {}; spoke at length about their {}; thought every day of their {};
    took a long walk with their {}; wrote often to their {}
    """
)


_ATTRIBUTE_FRAMES = _leads(
    """
    agreed to publish their {} as; announced that their {} was; believed that their {} was; chose as their {};
    confirmed in writing that their {} was; copied into the register as their {}; declared the {} as;
    described their {} as; entered the {} as; filled in the {} as; gave as their {}; got into the records with the {};
    handed in a form with the {}; mentioned that their {} was; never forgot that their {} was; noted down the {} as;
    published their {} as; recorded the {} as; remembered that their {} was; reported the {} as; said that their {} was;
    signed a paper with the {}; stated the {} as; typed in the {} as; wrote in every letter that their {} was
    """
)


def lead_texts(subject: str, phrase: str, *, is_relation: bool) -> tuple[str, ...]:
    """Return the leads of a subject. Those of relations, and of attributes without leads in `LEADS`, contain the phrase
    that denotes the subject."""
    frames = _RELATION_FRAMES if is_relation else _ATTRIBUTE_FRAMES
    return LEADS.get(subject) or tuple(frame.format(phrase) for frame in frames)
