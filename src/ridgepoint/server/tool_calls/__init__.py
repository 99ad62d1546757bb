"""How families of models write the calls of tools: texts to calls, grammars of calls, and which family writes what."""
