"""Data sets of faces, their alignment, and samplers of batches.

Every data set is a :class:`FaceDataset`: it has a length, and ``dataset[k]`` returns a :class:`Face` with an image,
uint8 [C, H, W]. Names, people and landmarks are known without opening an image. The public data sets are read from the
folder that the environment variable ``OCCFAST_DATA`` names, unless another one is given.
"""

from .align import TEMPLATES, Aligned, AlignedFaces, Template, align_faces
from .ar import AR, AR10P, AR100, Shot
from .celeba import CelebA
from .detect import Detected, DetectorSettings, detect_landmarks
from .faces import Alignment, EncodedFaces, Face, FaceDataset, Subset, WithLandmarks
from .folder import Folder, ImageFiles, ImageList, Photographs
from .images import read_image
from .landmarks import LandmarkTable, read_landmarks, write_landmarks
from .lfw import LFW
from .npz import Npz
from .open import open_dataset
from .orl import ORL
from .overlap import read_exclude
from .pairs import PairList, Pairs, read_pairs
from .record_file import RecordFile, RecordWriter
from .recordio import RecordIO
from .resize import Resized
from .samplers import MPerClassSampler, PKSampler
from .verification_bin import VerificationBin, write_verification_bin

__all__ = [
    "AR",
    "AR10P",
    "AR100",
    "LFW",
    "ORL",
    "TEMPLATES",
    "Aligned",
    "AlignedFaces",
    "Alignment",
    "CelebA",
    "Detected",
    "DetectorSettings",
    "EncodedFaces",
    "Face",
    "FaceDataset",
    "Folder",
    "ImageFiles",
    "ImageList",
    "LandmarkTable",
    "MPerClassSampler",
    "Npz",
    "PKSampler",
    "PairList",
    "Pairs",
    "Photographs",
    "RecordFile",
    "RecordIO",
    "RecordWriter",
    "Resized",
    "Shot",
    "Subset",
    "Template",
    "VerificationBin",
    "WithLandmarks",
    "align_faces",
    "detect_landmarks",
    "open_dataset",
    "read_exclude",
    "read_image",
    "read_landmarks",
    "read_pairs",
    "write_landmarks",
    "write_verification_bin",
]
