"""What a server imports, with the settings that have to be there before torch: for the process that servers are forked from."""

from app.core.process_settings import set_environment

set_environment()

import transformers.models.llama.modeling_llama  # noqa: E402, F401

import app.cli.main  # noqa: E402
import app.server  # noqa: E402, F401
import tests.app.serve_hanging  # noqa: E402
import tests.app.serve_scripted  # noqa: E402, F401
