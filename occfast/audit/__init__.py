"""What covering costs a recognizer, on one page."""

from .report import Audit, Condition
from .run import Covering, audit, usual_coverings

__all__ = ["Audit", "Condition", "Covering", "audit", "usual_coverings"]
