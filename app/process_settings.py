"""What a process that computes with torch sets before torch is loaded."""

from app.allocator import keep_freed_memory, use_huge_pages
from app.openmp import set_openmp_spin_count


def prepare_for_torch() -> None:
    """Makes all settings that the environment does not make otherwise; see their modules for what each gains."""
    set_openmp_spin_count()
    use_huge_pages()
    keep_freed_memory()
