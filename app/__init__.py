"""The Gradio app: `bitgen app runs/scenes`. `app/main.py` tells how it is laid out and how a tab is added."""
