import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/ui.css";
import "./styles/frame.css";
import { render } from "preact";
import { resumeJobs } from "./core/jobs";
import { loadServer } from "./core/server";
import { Frame } from "./frame/Frame";
import { applyTheme } from "./frame/theme";

applyTheme();
render(<Frame />, document.getElementById("app")!);
void loadServer();
resumeJobs();
