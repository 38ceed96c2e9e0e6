export const firstNames: readonly string[] = (
  'Aino Amara Anders Anja Antti Aylin Beatriz Bo Carla Chen Clara Dario Diego Eero Elif Elina Emeka Emil Emma Erik Esra Fatima ' +
  'Felix Freya Gaël Greta Hana Hannu Helmi Henrik Ida Ines Ingrid Ivo Jaan Jana Joana João Jonas Julia Kai Karin Kofi ' +
  'Laila Lars Lea Leevi Lena Leo Liisa Lin Linnea Luca Lucía Maija Malik Marek Mari Marta Matteo Mei Mia Mikko Milan ' +
  'Mira Nadia Naomi Niklas Nils Nina Noah Noor Olga Oliver Omar Oskar Paula Pedro Petra Piotr Rafael Rania Rosa Ruth ' +
  'Saana Samir Sana Sara Selma Sofia Sven Tara Teemu Tiina Tomás Tove Uma Vera Viktor Wanda Yara Yusuf Zoë'
).split(' ')

export const lastNames: readonly string[] = (
  'Aalto Adeyemi Ahmed Andersson Bauer Becker Berg Bianchi Blom Castro Chen Costa Dahl Demir Duarte Eriksen Fischer ' +
  'Fontaine García Haas Hansen Heikkinen Hoffmann Ito Ivanova Jansen Jensen Kaya Keller Kim Korhonen Kowalski Laine ' +
  'Larsen Lehtonen Lindqvist Maier Mäkinen Marin Martins Mensah Meyer Moreau Nakamura Nguyen Niemi Novak Nowak Okafor ' +
  'Olsen Öztürk Park Peeters Pereira Petrov Rantala Ricci Rojas Rossi Saarinen Santos Sato Schmid Schulz Silva Singh ' +
  'Tamm Torres Vargas Virtanen Visser Vogel Wagner Weber Wójcik Yılmaz Zhang Zimmermann'
).split(' ')

export const places: readonly string[] = (
  'Aarhus Antwerp Barcelona Bergen Berlin Bologna Brno Gdańsk Ghent Gothenburg Graz Helsinki Kraków Leipzig Lisbon ' +
  'Ljubljana Lyon Malmö Nantes Oslo Porto Riga Tallinn Tampere Turin Turku Utrecht Valencia Vilnius Zürich'
).split(' ')

/** One shelf of the shop: what is sold there and what one piece costs, in cents. */
export interface Shelf {
  readonly name: string
  readonly things: readonly string[]
  readonly priceMinor: readonly [low: number, high: number]
}

/** The tree of categories: departments and their shelves. */
export const departments: Readonly<Record<string, readonly Shelf[]>> = {
  Kitchen: [
    {
      name: 'Coffee and Tea',
      things: ['Coffee Pot', 'Teapot', 'Hand Grinder', 'Pour-over Dripper', 'Espresso Cup', 'Kettle'],
      priceMinor: [900, 9_900],
    },
    {
      name: 'Knives',
      things: ['Paring Knife', 'Chef’s Knife', 'Bread Knife', 'Sharpening Stone', 'Knife Block'],
      priceMinor: [1_900, 18_900],
    },
    {
      name: 'Pots and Pans',
      things: ['Frying Pan', 'Saucepan', 'Casserole', 'Wok', 'Stockpot', 'Griddle'],
      priceMinor: [2_400, 21_900],
    },
    {
      name: 'Baking',
      things: ['Loaf Tin', 'Mixing Bowl', 'Rolling Pin', 'Cake Ring', 'Proving Basket'],
      priceMinor: [700, 4_900],
    },
    { name: 'Storage Jars', things: ['Storage Jar', 'Spice Tin', 'Bread Box', 'Oil Bottle'], priceMinor: [400, 3_900] },
  ],
  Home: [
    {
      name: 'Lighting',
      things: ['Desk Lamp', 'Pendant Lamp', 'Reading Lamp', 'Lantern', 'Floor Lamp'],
      priceMinor: [2_900, 32_900],
    },
    {
      name: 'Textiles',
      things: ['Blanket', 'Cushion', 'Linen Sheet', 'Bath Towel', 'Rug', 'Apron'],
      priceMinor: [1_500, 24_900],
    },
    {
      name: 'Furniture',
      things: ['Stool', 'Side Table', 'Bookshelf', 'Coat Rack', 'Bench', 'Armchair'],
      priceMinor: [4_900, 89_900],
    },
    { name: 'Candles', things: ['Candle Holder', 'Beeswax Candle', 'Tealight Set'], priceMinor: [300, 3_500] },
  ],
  Outdoor: [
    { name: 'Tents', things: ['Two-person Tent', 'Tarp', 'Family Tent', 'Bivouac Bag'], priceMinor: [6_900, 69_900] },
    {
      name: 'Backpacks',
      things: ['Day Pack', 'Trekking Pack', 'Roll-top Bag', 'Hip Bag'],
      priceMinor: [2_900, 24_900],
    },
    {
      name: 'Camp Kitchen',
      things: ['Gas Stove', 'Mess Kit', 'Water Bottle', 'Fire Steel', 'Camping Mug'],
      priceMinor: [800, 12_900],
    },
    { name: 'Navigation', things: ['Compass', 'Map Case', 'Head Torch', 'Whistle'], priceMinor: [500, 8_900] },
  ],
  Workshop: [
    {
      name: 'Hand Tools',
      things: ['Claw Hammer', 'Screwdriver Set', 'Pliers', 'Hand Plane', 'Chisel', 'Japanese Saw'],
      priceMinor: [900, 14_900],
    },
    {
      name: 'Measuring',
      things: ['Folding Rule', 'Spirit Level', 'Marking Gauge', 'Calliper', 'Try Square'],
      priceMinor: [700, 9_900],
    },
    {
      name: 'Fastening',
      things: ['Bar Clamp', 'Wood Glue', 'Screw Assortment', 'Staple Gun'],
      priceMinor: [400, 5_900],
    },
  ],
  Garden: [
    {
      name: 'Tools for Soil',
      things: ['Spade', 'Rake', 'Hand Trowel', 'Hoe', 'Weeding Fork'],
      priceMinor: [900, 7_900],
    },
    {
      name: 'Watering',
      things: ['Watering Can', 'Hose Reel', 'Rain Barrel', 'Spray Bottle'],
      priceMinor: [600, 12_900],
    },
    {
      name: 'Pots and Planters',
      things: ['Planter', 'Hanging Basket', 'Seed Tray', 'Window Box'],
      priceMinor: [500, 8_900],
    },
  ],
  Office: [
    { name: 'Paper', things: ['Notebook', 'Sketchbook', 'Wall Planner', 'Index Cards'], priceMinor: [300, 3_900] },
    {
      name: 'Writing',
      things: ['Fountain Pen', 'Pencil Set', 'Ink Bottle', 'Highlighter Set'],
      priceMinor: [400, 16_900],
    },
    { name: 'Desk Order', things: ['Desk Tray', 'Pen Cup', 'Cable Box', 'Letter Rack'], priceMinor: [600, 6_900] },
  ],
}

export const qualities: readonly string[] =
  'Small Large Light Sturdy Folding Compact Classic Everyday Travel Studio Heavy-duty Slim Stackable Nordic Alpine'.split(
    ' ',
  )

/** What the things of each department are made of. */
export const materials: Readonly<Record<string, readonly string[]>> = {
  Kitchen: ['Steel', 'Cast-iron', 'Copper', 'Enamel', 'Stoneware', 'Olive-wood'],
  Home: ['Oak', 'Ash', 'Birch', 'Walnut', 'Linen', 'Brass'],
  Outdoor: ['Canvas', 'Aluminium', 'Titanium', 'Ripstop', 'Waxed'],
  Workshop: ['Steel', 'Beech', 'Brass', 'Forged', 'Hornbeam'],
  Garden: ['Zinc', 'Terracotta', 'Galvanized', 'Ash', 'Copper'],
  Office: ['Leather', 'Cork', 'Oak', 'Linen-bound', 'Brass'],
}

export const descriptions: readonly string[] = [
  'Made to be repaired: every part can be ordered on its own.',
  'Does one thing and does it for decades.',
  'Finished by hand, so that no two are quite the same.',
  'Comes with a cotton bag and a short manual in nine languages.',
  'Tested by our readers through one long winter.',
  'Packs small, weighs little, and forgives rough handling.',
  'The shape has not changed since 1962; there was no need.',
  'Oil it once a year and it will outlive the cupboard it stands in.',
]

export const postTitles: readonly string[] = [
  'A year with my {thing}',
  'How do you clean a {thing}?',
  'The {thing} that survived three moves',
  'Repairing an old {thing}, step by step',
  'Which {thing} for a beginner?',
  'Why I went back to a plain {thing}',
  'Five things I wish I had known before buying a {thing}',
  'My grandmother’s {thing}',
  'Is a good {thing} worth its price?',
  'Small workshop, one {thing}',
]

export const sentences: readonly string[] = [
  'I bought it in spring and have used it nearly every day since.',
  'The first week was a disappointment, the second was not.',
  'What nobody tells you is how much the handle matters.',
  'A drop of oil and ten minutes were all it needed.',
  'I compared it with the one I had before, and the difference is plain to see.',
  'It is heavier than it looks, which I have come to like.',
  'The finish shows its first scratches, and they suit it.',
  'If you have small hands, try it before you buy.',
  'I would buy it again, but in the smaller size.',
  'My neighbour has the other model and we still argue about it.',
  'Spare parts arrived within three days.',
  'There are photographs at the end of this post.',
]

export const remarks: readonly string[] = [
  'Thank you, this helped me decide.',
  'Same here, after two years still like new.',
  'Which size do you have?',
  'I tried that and it works.',
  'Mine arrived with a loose screw, easily mended.',
  'Have you tried linseed oil?',
  'Good to know before the winter.',
  'I disagree about the handle, but otherwise well observed.',
  'Could you add a picture of the underside?',
  'Ordered one this morning because of you.',
]
