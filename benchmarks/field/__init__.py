"""Our server on the field's common data: CAA's behaviours, AxBench's concept detection, refusal and IFEval, over HTTP."""
