"""A model served inside a memory budget: the OpenAI API over the native runtime's engine.

application.py has the paths, service.py what they share, scheduler.py the one thread that owns the engine, limits.py
every bound. Needs the extra [serve].
"""
