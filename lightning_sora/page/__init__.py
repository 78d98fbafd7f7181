"""The page: prompts and all tasks in a browser, by one model that is loaded once. It alone knows gradio."""
