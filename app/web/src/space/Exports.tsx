import { offer } from "../api/client";
import { Button } from "../ui/parts";
import { svgOf } from "./draw";
import { scene } from "./scene";
import { layerName, maps, playhead, spaceTable } from "./store";

/** The picture as PNG or SVG, and its numbers as CSV. */
export function Exports() {
  if (maps.value.length === 0) return null;
  const name = () => `space-${layerName(Math.round(playhead.value)).replaceAll(" ", "-")}`;
  const picture = () => {
    const canvas = document.querySelector<HTMLCanvasElement>(".scatter canvas");
    canvas?.toBlob((file) => file && offer(file, `${name()}.png`));
  };
  const drawing = () => {
    const { clientWidth: width = 800, clientHeight: height = 500 } = document.querySelector(".scatter canvas") ?? {};
    const text = scene.value && svgOf(scene.value, { width, height, ratio: 1, yaw: 0.6, pitch: 0.35 });
    if (text) offer(new Blob([text], { type: "image/svg+xml" }), `${name()}.svg`);
  };
  const table = () => offer(new Blob([spaceTable()], { type: "text/csv" }), `${name()}.csv`);
  return (
    <>
      <Button label="PNG" hidden=": the picture as a file" kind="quiet" onClick={picture} />
      <Button label="SVG" hidden=": the picture as a drawing" kind="quiet" onClick={drawing} />
      <Button label="CSV" hidden=": the points as a table" kind="quiet" onClick={table} />
    </>
  );
}
