import type { components } from "./schema";

export type Schemas = components["schemas"];

export type Vector = Schemas["VectorAnswer"];
export type Job = Schemas["JobAnswer"];
export type Profile = Schemas["ProfileAnswer"];
export type Message = Schemas["Message"];
export type AppliedIntervention = Schemas["AppliedIntervention"];
export type Version = Schemas["VectorVersionAnswer"];
export type VersionPage = Schemas["VectorVersionsAnswer"];
export type Similar = Schemas["SimilarAnswer"];
export type CompareAnswer = Schemas["CompareAnswer"];
export type Readout = Schemas["ReadoutAnswer"];
export type Explanation = Schemas["ExplainAnswer"];
export type Policy = Schemas["PolicyAnswer"];
export type Monitor = Schemas["MonitorAnswer"];
export type MonitorDetail = Schemas["MonitorDetail"];
export type Key = Schemas["KeyAnswer"];
export type LatentSpace = Schemas["LatentSpaceAnswer"];
export type Dictionary = Schemas["DictionaryAnswer"];
export type View = Schemas["LinkRequest"]["view"];
export type Estimate = Schemas["Estimate"];

/** One generated token. `readout` is of the stream in which it was written, and contains what steering added. */
export type Token = Omit<Schemas["Token"], "id"> & { id: number | null };
export type TokenPiece = Token & { arm?: string | null; choice: number; index: number };
