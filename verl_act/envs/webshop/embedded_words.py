"""The vocabulary of the embedded catalogue: kinds of product with their attributes, options and prices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProductKind:
    """A kind of product. `options` maps an option's name to the values that products of the kind may offer."""

    noun: str
    category: str
    path: str
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    prices: tuple[int, int]
    """Lowest and highest price in US dollars."""
    uses: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


_COLORS = _words(
    "black, white, navy, charcoal, burgundy, olive, beige, teal, coral, lavender, mustard, brown, pink, ivory, "
    "turquoise, silver"
)
_CLOTHES = _words("x-small, small, medium, large, x-large, xx-large, 3x-large")
_SHOES = _words("5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5, 10, 11")
_PACKS = _words("pack of 1, pack of 2, pack of 3, pack of 6, pack of 12")
_VOLUMES = _words("1 fl oz, 2 fl oz, 4 fl oz, 8 fl oz, 12 fl oz, 16 fl oz")
_WEIGHTS = _words("4 ounce, 8 ounce, 12 ounce, 1 pound, 2 pound, 5 pound")
_SCENTS = _words("lavender, citrus, vanilla, sandalwood, rose, coconut, peppermint, unscented")
_FLAVORS = _words("original, chocolate, vanilla, sea salt, maple, spicy chili, peanut butter, berry, lemon")
_LENGTHS = _words("3 feet, 6 feet, 10 feet, 15 feet, 25 feet")
_WOODS = _words("espresso, walnut, natural, white, grey, black")

_WEAR = _words(
    "machine washable, long sleeve, slim fit, loose fit, quick drying, moisture wicking, drawstring waist, "
    "hand wash, tumble dry, polyester spandex, cotton blend, elastic closure, everyday wear, button closure"
)
_SHOE = _words(
    "rubber sole, arch support, memory foam, non slip, lace up, slip resistant, ethylene vinyl, open toe, "
    "synthetic sole, ankle strap, leather lining, daily wear"
)
_BEAUTY = _words(
    "cruelty free, paraben free, sulfate free, fragrance free, tea tree, natural ingredients, hyaluronic acid, "
    "sensitive skin, dry skin, anti aging, coconut oil, long lasting, dermatologist tested, vitamin enriched"
)
_HAIR = _words("damaged hair, dry hair, hair growth, natural hair, easy use, heat resistant, color treated")
_ELECTRONIC = _words(
    "high speed, plug play, easy install, gold plated, noise cancelling, hands free, fast charging, water resistant, "
    "high definition, wireless bluetooth, stereo sound, carrying case, long battery, ultra light"
)
_HOME = _words(
    "easy assemble, heavy duty, solid wood, space saving, easy clean, mid century, stainless steel, metal legs, "
    "assembly required, living room, dining room, storage space, non toxic, fade resistant"
)
_TEXTILE = _words(
    "super soft, machine washable, hand wash, fade resistant, stain resistant, easy clean, eco friendly, double sided, "
    "non toxic, living room, dining room, exquisite workmanship"
)
_GROCERY = _words(
    "gluten free, sugar free, dairy free, low carb, high protein, keto friendly, non gmo, certified organic, "
    "plant based, individually wrapped, artificial colors, ready eat, low sodium, shelf stable"
)

_SHOP = {
    "fashion": "Clothing, Shoes & Jewelry",
    "beauty": "Beauty & Personal Care",
    "electronics": "Electronics",
    "garden": "Home & Kitchen",
    "grocery": "Grocery & Gourmet Food",
}


def _kind(
    noun: str,
    category: str,
    path: str,
    attributes: tuple[str, ...],
    prices: tuple[int, int],
    uses: str,
    **options: tuple[str, ...],
) -> ProductKind:
    named = {name.replace("_", " "): values for name, values in options.items()}
    return ProductKind(noun, category, f"{_SHOP[category]} › {path}", attributes, named, prices, _words(uses))


KINDS = (
    _kind("running shoes", "fashion", "Men › Shoes › Athletic", _SHOE, (28, 120), "the gym, a morning run, long walks",
          size=_SHOES, color=_COLORS),
    _kind("ankle boots", "fashion", "Women › Shoes › Boots", _SHOE, (30, 140), "the office, autumn days, a city trip",
          size=_SHOES, color=_COLORS),
    _kind("sandals", "fashion", "Women › Shoes › Sandals", _SHOE, (15, 70), "the beach, summer days, holidays",
          size=_SHOES, color=_COLORS),
    _kind("hoodie", "fashion", "Men › Clothing › Sweatshirts", _WEAR, (18, 75), "chilly evenings, training, travel",
          size=_CLOTHES, color=_COLORS),
    _kind("maxi dress", "fashion", "Women › Clothing › Dresses", _WEAR, (20, 90), "a wedding, parties, warm evenings",
          size=_CLOTHES, color=_COLORS),
    _kind("jogger pants", "fashion", "Men › Clothing › Pants", _WEAR, (16, 65), "the gym, lazy sundays, travel",
          size=_CLOTHES, color=_COLORS, fit_type=_words("regular, big & tall, slim")),
    _kind("polo shirt", "fashion", "Men › Clothing › Shirts", _WEAR, (12, 60), "golf, the office, school",
          size=_CLOTHES, color=_COLORS),
    _kind("swimsuit", "fashion", "Women › Clothing › Swimsuits", _WEAR, (18, 80), "the pool, the beach, holidays",
          size=_CLOTHES, color=_COLORS),
    _kind("face serum", "beauty", "Skin Care › Face › Serums", _BEAUTY, (9, 60), "the morning, the night, travel",
          size=_VOLUMES),
    _kind("body lotion", "beauty", "Skin Care › Body › Moisturizers", _BEAUTY, (7, 40), "winter, after a bath, gifts",
          size=_VOLUMES, scent=_SCENTS),
    _kind("shampoo", "beauty", "Hair Care › Shampoo", _BEAUTY[:7] + _HAIR, (8, 45), "every day, the gym bag, families",
          size=_VOLUMES, scent=_SCENTS),
    _kind("hair mask", "beauty", "Hair Care › Treatments", _BEAUTY[:6] + _HAIR, (9, 50), "weekends, salons, curls",
          size=_VOLUMES, scent=_SCENTS),
    _kind("lip balm", "beauty", "Makeup › Lips", _BEAUTY, (4, 22), "cold days, the handbag, gifts",
          flavor_name=_FLAVORS[1:], size=_PACKS),
    _kind("deodorant", "beauty", "Personal Care › Deodorants", _BEAUTY, (5, 28), "sport, long days, travel",
          scent=_SCENTS, size=_PACKS),
    _kind("makeup brush set", "beauty", "Tools › Makeup Brushes",
          (*_words("synthetic hair, easy clean, easy carry, non toxic, eco friendly"), *_BEAUTY[:2], "soft bristles"),
          (8, 55), "beginners, artists, travel", color=_COLORS, size=_words("8 pieces, 12 pieces, 18 pieces")),
    _kind("bluetooth speaker", "electronics", "Audio › Speakers", _ELECTRONIC, (18, 160), "parties, camping, the bath",
          color=_COLORS),
    _kind("wireless earbuds", "electronics", "Audio › Headphones", _ELECTRONIC, (15, 150), "calls, sport, commuting",
          color=_COLORS, style=_words("standard, with charging case, with ear hooks")),
    _kind("hdmi cable", "electronics", "Accessories › Cables", _ELECTRONIC, (6, 45), "a television, games, projectors",
          size=_LENGTHS, color=_COLORS[:4]),
    _kind("usb c charger", "electronics", "Accessories › Chargers", _ELECTRONIC, (9, 60), "the desk, travel, a tablet",
          color=_COLORS[:5], size=_words("20 watt, 30 watt, 65 watt, 100 watt")),
    _kind("tablet case", "electronics", "Accessories › Cases", _ELECTRONIC, (10, 48), "school, the sofa, travel",
          color=_COLORS, size=_words("8 inch, 10.2 inch, 10.9 inch, 12.9 inch")),
    _kind("security camera", "electronics", "Cameras › Surveillance", _ELECTRONIC, (22, 180), "the porch, a shop, pets",
          size=_words("1 camera, 2 cameras, 4 cameras"), style=_words("wired, solar powered, battery powered")),
    _kind("digital camera", "electronics", "Cameras › Digital Cameras", _ELECTRONIC, (60, 420), "birds, trips, pets",
          color=_COLORS[:6], style=_words("body only, with lens kit, with tripod")),
    _kind("smartwatch band", "electronics", "Wearables › Bands", _ELECTRONIC, (6, 40), "sport, the office, gifts",
          color=_COLORS, size=_words("38mm, 41mm, 42mm, 45mm")),
    _kind("coffee table", "garden", "Furniture › Tables", _HOME, (60, 320), "a small flat, the lounge, a studio",
          color=_WOODS, size=_words("32 inch, 40 inch, 48 inch")),
    _kind("bar stool", "garden", "Furniture › Chairs", _HOME, (45, 240), "the kitchen, a counter, a pub",
          color=_COLORS, size=_words("24 inch, 26 inch, 30 inch")),
    _kind("bookcase", "garden", "Furniture › Shelves", _HOME, (40, 260), "a study, the hallway, a nursery",
          color=_WOODS, size=_words("3 tier, 4 tier, 5 tier")),
    _kind("area rug", "garden", "Decor › Rugs", (*_TEXTILE, "non slip"), (25, 280), "the hallway, a nursery, a studio",
          color=_COLORS, size=_words("2 ft x 3 ft, 4 ft x 6 ft, 5 ft x 8 ft, 8 ft x 10 ft")),
    _kind("throw pillow cover", "garden", "Bedding › Pillows", _TEXTILE, (7, 38), "the sofa, a bench, gifts",
          color=_COLORS, size=_words("16 x 16, 18 x 18, 20 x 20, 12 x 20")),
    _kind("window curtains", "garden", "Decor › Curtains", (*_TEXTILE, "blackout lining"), (15, 95),
          "a bedroom, a nursery, the lounge", color=_COLORS, size=_words("52 x 63, 52 x 84, 52 x 96")),
    _kind("storage ottoman", "garden", "Furniture › Ottomans", _HOME, (35, 190), "blankets, toys, the hallway",
          color=_COLORS, material_type=_words("linen, velvet, faux leather")),
    _kind("table lamp", "garden", "Lighting › Lamps", (*_HOME, "bronze finish", "glass shade"), (20, 130),
          "reading, the bedside, a desk", color=_WOODS, style=_words("single, set of 2")),
    _kind("granola bars", "grocery", "Snacks › Bars", _GROCERY, (6, 42), "hikes, lunch boxes, the office",
          flavor_name=_FLAVORS, size=_PACKS),
    _kind("trail mix", "grocery", "Snacks › Nuts", _GROCERY, (7, 48), "hikes, parties, the car",
          flavor_name=_FLAVORS, size=_WEIGHTS),
    _kind("protein powder", "grocery", "Nutrition › Proteins", _GROCERY, (18, 85), "shakes, training, breakfast",
          flavor_name=_FLAVORS, size=_WEIGHTS[2:]),
    _kind("herbal tea", "grocery", "Beverages › Tea", _GROCERY, (5, 36), "evenings, colds, gifts",
          flavor_name=_words("chamomile, peppermint, ginger lemon, hibiscus, rooibos"), size=_PACKS),
    _kind("ground coffee", "grocery", "Beverages › Coffee", _GROCERY, (8, 52), "breakfast, the office, camping",
          flavor_name=_words("dark roast, medium roast, light roast, hazelnut, french vanilla"), size=_WEIGHTS),
    _kind("beef jerky", "grocery", "Snacks › Jerky", _GROCERY, (7, 45), "road trips, hikes, the game",
          flavor_name=_words("original, teriyaki, peppered, sweet heat, smoked"), size=_PACKS),
    _kind("rice crackers", "grocery", "Snacks › Crackers", _GROCERY, (5, 34), "lunch boxes, cheese, parties",
          flavor_name=_words("sea salt, sesame, wasabi, black pepper, cheddar"), size=_PACKS),
    _kind("seasoning mix", "grocery", "Pantry › Spices", _GROCERY, (5, 30), "barbecues, soups, popcorn",
          flavor_name=_words("garlic herb, cajun, smoky paprika, lemon pepper, taco"), size=_WEIGHTS[:4]),
    _kind("baking chocolate", "grocery", "Pantry › Baking", _GROCERY, (6, 40), "cookies, gifts, fondue",
          flavor_name=_words("dark, semi sweet, white, milk"), size=_WEIGHTS[:5]),
)  # fmt: skip
"""Every kind; products take turns in this order."""

AUDIENCES = {
    "fashion": _words("men, women, teens, adults"),
    "beauty": _words("women, men, all skin types, daily care"),
    "electronics": _words("home, office, travel, gaming"),
    "garden": _words("home, bedroom, small spaces, apartment"),
    "grocery": _words("adults, kids, families, snack lovers"),
}

BRAND_STARTS = _words(
    "Nor, Til, Bra, Vel, Kes, Mar, Os, Fen, Lu, Quil, Ard, Zan, Hol, Pem, Rys, Dov, Cal, Wex, Im, Jun"
)
BRAND_ENDS = _words("vane, brook, dric, mora, nett, lys, quist, dale, ovia, tenn, rica, holt, zette, mundi, vik, sole")

ADJECTIVES = _words("premium, classic, modern, lightweight, upgraded, portable, elegant, durable, cozy, versatile")

TITLES = (
    "{brand} {adjective} {noun} for {audience}, {attributes}",
    "{brand} {noun} - {attributes} - {adjective} design for {audience}",
    "{brand} {attributes} {noun}, {adjective} choice for {audience}",
    "{adjective} {noun} for {audience} by {brand}, {attributes}",
)
DESCRIPTIONS = (
    "{brand} makes {this} {noun} with {audience} in mind. {they} {are} {attribute}, the {adjective} choice for {use}.",
    "Looking for something {adjective}? {this} {noun} {are} made for {use} and {come} {attribute}, by {brand}.",
    "The {brand} {noun} {are} the {adjective} companion for {use}: {attribute}, carefully made and packed.",
)
BULLETS = (
    "{attribute}: what our customers value most in {this} {noun}",
    "made for {use}, {attribute} and {adjective}",
    "{attribute} - thought through in every detail",
    "the {adjective} gift for {audience}, {attribute}",
)

ASKS = (
    "i am looking for {article} {attributes} {noun}{options}",
    "i need {article} {attributes} {noun}{options}",
    "find me {article} {noun} that {are} {attributes}{options}",
    "i want to buy {article} {attributes} {noun}{options}",
    "can you get me {article} {noun} which {are} {attributes}{options}?",
    "i would like {article} {attributes} {noun}{options}",
    "show me {article} {noun}{options}. {they} should be {attributes}",
    "i'm shopping for {article} {noun}{options}, {attributes} please",
)
"""How people ask; `{options}` starts with a space or a comma, or is empty."""
SINGULAR = {"this": "this", "they": "it", "are": "is", "come": "comes"}
PLURAL = {"this": "these", "they": "they", "are": "are", "come": "come"}
OPTION_ASKS = {
    "size": (" in size {value}", ", size {value}", " and the size should be {value}"),
    "color": (" in {value}", " in the color {value}", ", {value} colored"),
    "flavor name": (" with {value} flavor", " in the {value} flavor"),
    "scent": (" with {value} scent", " that is {value} scented"),
    "style": (" in the style {value}", " that comes {value}"),
    "fit type": (" in {value} fit",),
    "material type": (" made of {value}",),
}
