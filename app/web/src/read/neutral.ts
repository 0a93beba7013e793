/** Plain statements without feeling, opinion or register: what "nothing stands out" looks like. */
export const NEUTRAL: readonly string[] = [
  "The library opens at nine in the morning and closes at six in the evening.",
  "Water boils at one hundred degrees Celsius at sea level.",
  "The train from the north arrives on platform four and continues to the coast.",
  "A standard sheet of paper is about thirty centimetres long.",
  "The report has three chapters, a table of contents and an index.",
  "The road runs along the river for two kilometres and then crosses a bridge.",
  "The meeting takes place in the second week of each month.",
  "The box contains twelve screws, a small wrench and the instructions.",
  "The museum has two floors; the older part was built of brick.",
  "Bread is made from flour, water, salt and yeast.",
  "The file is stored in a folder that has the name of the project.",
  "The bus stops at the station, the market and the school.",
  "A week has seven days, and a day has twenty-four hours.",
  "The window faces south, and the balcony faces the street.",
  "The number of people is counted at the entrance every hour.",
  "The cable connects the printer to the computer.",
];
