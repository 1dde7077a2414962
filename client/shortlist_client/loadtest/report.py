"""placeholder"""
def page_of(figures: dict) -> str: return ""
