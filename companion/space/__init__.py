"""A Gradio Space of your own: studio.py draws, app.py is the page, command.py builds it, runs it and pushes it.

studio.py and app.py are copied into the Space unchanged, so they import nothing from the course.
"""
