"""What covering costs a recognizer, on one page; two recognizers beside each other; a gate for regressions."""

from .comparison import AuditComparison, compare
from .figures import Figure
from .gate import GateResult, gate
from .paired import FigureDifference
from .record import AuditRecord
from .report import Audit, Condition
from .run import Covering, Work, audit, usual_coverings

__all__ = [
    "Audit",
    "AuditComparison",
    "AuditRecord",
    "Condition",
    "Covering",
    "Figure",
    "FigureDifference",
    "GateResult",
    "Work",
    "audit",
    "compare",
    "gate",
    "usual_coverings",
]
