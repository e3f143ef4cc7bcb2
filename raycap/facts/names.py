"""Census names, names of relations, and the values of attributes."""

from functools import cache
from importlib.resources import files

RELATIONS = (
    "parent",
    "child",
    "best_friend",
    "worst_enemy",
    "sibling",
    "spouse",
    "cousin",
    "grandparent",
    "grandchild",
    "business_partner",
    "protege",
    "mentor",
    "betrayer",
    "debtor",
    "blackmailer",
    "hero",
    "evil_twin",
)
"""All relations. A population with R relations has the first R."""


@cache
def census_first_names() -> tuple[str, ...]:
    """Return the 5,163 first names of the 1990 US census in descending order of frequency. They are also middle
    names."""
    frequency: dict[str, float] = {}
    for file in ("dist.female.first", "dist.male.first"):
        for name, share in _census_rows(file):
            frequency[name] = frequency.get(name, 0.0) + share
    return tuple(sorted(frequency, key=lambda name: (-frequency[name], name)))


@cache
def census_last_names() -> tuple[str, ...]:
    """Return the 88,799 last names of the 1990 US census in descending order of frequency."""
    return tuple(name for name, _ in _census_rows("dist.all.last"))


def _census_rows(file: str) -> list[tuple[str, float]]:
    lines = (files("names") / file).read_text(encoding="ascii").splitlines()
    return [(name.capitalize(), float(share)) for name, share, *_ in (line.split() for line in lines)]


BIRTH_CITIES = tuple(
    """
Aarhus; Abidjan; Abu Dhabi; Accra; Adana; Addis Ababa; Adelaide; Aleppo; Alexandria; Algiers; Almaty; Amman;
Amsterdam; Ankara; Antalya; Antwerp; Arequipa; Asmara; Asuncion; Athens; Atlanta; Auckland; Baghdad; Baku;
Baltimore; Bamako; Bandung; Bangkok; Barcelona; Barranquilla; Basra; Beirut; Belfast; Belgrade; Belo Horizonte;
Bergen; Berlin; Bern; Bilbao; Birmingham; Bogota; Bologna; Bordeaux; Boston; Brasilia; Bratislava; Brazzaville;
Bremen; Bristol; Brussels; Bucharest; Budapest; Buenos Aires; Bursa; Busan; Cairo; Calgary; Cali; Cape Town;
Cardiff; Casablanca; Chennai; Chicago; Chittagong; Cleveland; Cologne; Colombo; Conakry; Copenhagen; Cordoba; Cork;
Curitiba; Cusco; Dakar; Dallas; Damascus; Dar es Salaam; Davao; Delhi; Denver; Detroit; Dhaka; Djibouti; Doha;
Dortmund; Douala; Dresden; Dubai; Dublin; Dubrovnik; Dushanbe; Edmonton; El Paso; Essen; Fez; Florence; Fortaleza;
Frankfurt; Fukuoka; Gaborone; Gdansk; Genoa; Ghent; Glasgow; Gothenburg; Guadalajara; Guayaquil; Haifa; Halifax;
Hanoi; Harare; Havana; Hiroshima; Honolulu; Houston; Hyderabad; Incheon; Innsbruck; Islamabad; Istanbul; Izmir;
Jaipur; Jakarta; Johannesburg; Kabul; Kampala; Kaohsiung; Karachi; Kathmandu; Khartoum; Kigali; Kinshasa; Kobe;
Kolkata; Krakow; Kuala Lumpur; Kumasi; Kyoto; La Paz; Lagos; Leeds; Leipzig; Libreville; Lille; Lima; Zaragoza;
Lisbon; Ljubljana; Lodz; Lome; Lucerne; Lusaka; Luxor; Lyon; Madrid; Malaga; Malmo; Managua; Manaus; Manchester;
Manila; Maputo; Marrakesh; Marseille; Medellin; Melbourne; Memphis; Milan; Minsk; Mombasa; Monterrey; Montevideo;
Montreal; Mumbai; Munich; Muscat; Nagoya; Nashville; Nicosia; Osaka; Oslo; Palermo; Panama City; Paris; Phnom Penh;
Porto; Prague; Quito; Rabat; Recife; Reykjavik; Rome; Rotterdam; Samarkand; Santiago; Sapporo; Sarajevo; Seattle;
Seoul; Seville; Sofia; Stockholm; Tallinn; Tbilisi; Tokyo; Toronto; Toulouse; Trieste; Tripoli; Tunis; Turin;
Ulaanbaatar; Utrecht; Valencia; Vancouver; Venice; Vienna; Vilnius; Warsaw; Wroclaw; Yerevan; Zagreb; Zurich
""".replace("\n", " ")
    .strip()
    .split("; ")
)
"""223 cities. No value of an attribute is a prefix of another, so the end of an answer carries no information."""

UNIVERSITIES = tuple(
    """
Alder Hill University; Amber Coast University; Arrowmere College; Ashgrove University; Aspen Ridge College;
Barrowdale University; Bayhaven University; Beacon Institute of Technology; Birchwater College;
Blackthorn University; Blue Mesa University; Brackenfield College; Bramblewood University; Briar Glen College;
Calder Valley University; Canyon Gate University; Cedar Point College; Chalk Down University; Cinderford University;
Clearbrook College; Cloverfield University; Copper Basin Institute of Technology; Coral Bay University;
Cranmoor University; Crescent Lake College; Dawnridge University; Deepwell College; Driftwood University;
Dunmarsh University; Eagle Pass University; Eastmere University; Ebony Falls College; Eldermoor University;
Elmstead College; Emberton University; Fairwater University; Falcon Heights Polytechnic; Fernhollow College;
Flintshore University; Foxglove University; Gable Street College; Glasswater University; Golden Plain University;
Granite Bluff Polytechnic; Greystone University; Gullwing College; Harborlight University; Hartsmere University;
Hawthorn Vale College; Heathermoor University; Highmeadow University; Hollybank College; Ironbridge Polytechnic;
Ivory Cape University; Jasper Canyon University; Juniper Ridge College; Kestrel Bay University;
Kingsreach University; Lakeshire University; Larkspur College; Lavender Hill University; Limestone Polytechnic;
Linden Park University; Longmarsh College; Maple Sound University; Marble Arch Institute of Technology;
Meadowlark University; Millrace College; Mistral Coast University; Moonstone University; Mosswood College;
Northlight University; Oakhaven University; Obsidian Polytechnic; Orchard Lane College; Osprey Island University;
Palewater University; Pebble Beach Institute of Technology; Pinecrest University; Quarry Bank Polytechnic;
Quill Street College; Ravensmoor University; Redcliff University; Rosewood College; Rowan Heights University;
Saltmarsh University; Sandpiper College; Silver Birch University; Snowfield University; Stonewater Polytechnic;
Summerlea College; Sunward University; Tamarack University; Thistledown College; Thornbury Gate University;
Umberland University; Violet Hills University; Westerly University; Willowmere College; Yarrow Bank University
""".replace("\n", " ")
    .strip()
    .split("; ")
)
"""100 fictional universities."""

EMPLOYERS = tuple(
    """
Acorn Freight; Albatross Airways; Anvil Steelworks; Apex Lantern; Argent Insurance; Atlas Bakery; Aurora Textiles;
Badger Brewing; Basalt Energy; Beehive Media; Bluefin Seafood; Bolt Couriers; Bramley Foods; Bronze Age Games;
Cactus Software; Candle Optics; Cascade Paper; Cobalt Mining; Comet Rail; Compass Travel; Copperleaf Bank;
Cricket Wireless Works; Crown Ceramics; Delta Shipyards; Dolphin Cruises; Dovetail Furniture; Dynamo Motors;
Ember Robotics; Emerald Cement; Falcon Aerospace; Feather Publishing; Firefly Lighting; Fjord Timber; Foundry Labs;
Garnet Pharmaceuticals; Ginger Cosmetics; Glacier Water; Granary Mills; Gravel and Stone; Harvest Dairy;
Heron Security; Horizon Telecom; Indigo Dyes; Ivory Pianos; Jade Jewellers; Jigsaw Toys; Keystone Builders;
Kite Logistics; Lighthouse Pictures; Lotus Hospitals; Magnet Recruitment; Mallard Hotels; Meteor Chemicals;
Mosaic Tiles; Nectar Beverages; Nimbus Computing; Oak and Iron; Onyx Semiconductors; Orchid Perfumes;
Osmosis Filters; Paragon Law; Pelican Petroleum; Pepper Restaurants; Pinwheel Studios; Quartz Watches;
Raven Analytics; Saffron Spices; Sparrow Bicycles; Tangerine Records; Tundra Outfitters; Velvet Upholstery;
Walnut Consulting; Zephyr Turbines
""".replace("\n", " ")
    .strip()
    .split("; ")
)
"""73 fictional employers."""
