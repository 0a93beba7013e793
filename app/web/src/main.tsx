import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/ui.css";
import "./styles/frame.css";
import { render } from "preact";
import { Frame } from "./frame/Frame";
import { loadServer } from "./frame/server";
import { applyTheme } from "./frame/theme";

applyTheme();
render(<Frame />, document.getElementById("app")!);
void loadServer();
