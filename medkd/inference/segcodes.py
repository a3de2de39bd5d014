"""What label names mean in SNOMED CT, for DICOM: organs and lesions that many models know; others stay general."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medkd.data.sides import SIDES, words

# Words of a name -> keyword of pydicom's dictionary of SNOMED CT, which holds code and meaning.
ORGANS: dict[str, str] = {
    "adrenal": "AdrenalGland",
    "adrenal gland": "AdrenalGland",
    "amygdala": "Amygdala",
    "aorta": "Aorta",
    "artery": "Artery",
    "atrium left": "LeftAtrium",
    "atrium right": "RightAtrium",
    "bladder": "Bladder",
    "bone": "Bone",
    "brain": "Brain",
    "brain stem": "BrainStem",
    "brainstem": "BrainStem",
    "breast": "Breast",
    "caudate": "CaudateNucleus",
    "caudate nucleus": "CaudateNucleus",
    "cecum": "Cecum",
    "cerebellum": "Cerebellum",
    "cerebrospinal fluid": "CerebrospinalFluid",
    "chiasm": "OpticChiasm",
    "clavicle": "Clavicle",
    "colon": "Colon",
    "common iliac artery": "CommonIliacArtery",
    "common iliac vein": "CommonIliacVein",
    "csf": "CerebrospinalFluid",
    "diaphragm": "Diaphragm",
    "duodenum": "Duodenum",
    "esophagus": "Esophagus",
    "eye": "Eye",
    "eyeball": "Eyeball",
    "fat": "Fat",
    "femoral head": "FemoralHead",
    "femur": "Femur",
    "gall bladder": "Gallbladder",
    "gallbladder": "Gallbladder",
    "gray matter": "GrayMatter",
    "grey matter": "GrayMatter",
    "heart": "Heart",
    "hepatic vein": "HepaticVein",
    "hip": "Hip",
    "hippocampus": "Hippocampus",
    "humerus": "Humerus",
    "iliac artery": "CommonIliacArtery",
    "inferior vena cava": "InferiorVenaCava",
    "kidney": "Kidney",
    "lacrimal gland": "LacrimalGland",
    "larynx": "Larynx",
    "lens": "Lens",
    "liver": "Liver",
    "lung": "Lung",
    "lymph node": "LymphNode",
    "mandible": "Mandible",
    "muscle": "Muscle",
    "oesophagus": "Esophagus",
    "optic chiasm": "OpticChiasm",
    "optic nerve": "OpticNerve",
    "oral cavity": "OralCavity",
    "ovary": "Ovary",
    "pancreas": "Pancreas",
    "parotid": "ParotidGland",
    "parotid gland": "ParotidGland",
    "pituitary": "Pituitary",
    "portal vein": "PortalVein",
    "postcava": "InferiorVenaCava",
    "prostate": "Prostate",
    "pulmonary artery": "PulmonaryArtery",
    "pulmonary vein": "PulmonaryVein",
    "putamen": "Putamen",
    "rectum": "Rectum",
    "rib": "Rib",
    "sacrum": "Sacrum",
    "scapula": "Scapula",
    "skin": "Skin",
    "skull": "Skull",
    "small bowel": "SmallIntestine",
    "small intestine": "SmallIntestine",
    "spinal cord": "SpinalCord",
    "spleen": "Spleen",
    "splenic vein": "SplenicVein",
    "sternum": "Sternum",
    "stomach": "Stomach",
    "subclavian artery": "SubclavianArtery",
    "submandibular": "SubmandibularGland",
    "submandibular gland": "SubmandibularGland",
    "superior vena cava": "SuperiorVenaCava",
    "testis": "Testis",
    "thalamus": "Thalamus",
    "thyroid": "Thyroid",
    "thyroid gland": "Thyroid",
    "tongue": "Tongue",
    "trachea": "Trachea",
    "urinary bladder": "Bladder",
    "uterus": "Uterus",
    "vein": "Vein",
    "ventricle left": "LeftVentricle",
    "ventricle right": "RightVentricle",
    "vertebra": "Vertebra",
    "white matter": "WhiteMatter",
}
LESIONS: dict[str, str] = {
    "cancer": "Neoplasm",
    "cyst": "Cyst",
    "edema": "Edema",
    "hemorrhage": "Hemorrhage",
    "lesion": "Lesion",
    "mass": "Mass",
    "metastasis": "Metastasis",
    "necrosis": "Necrosis",
    "neoplasm": "Neoplasm",
    "nodule": "Nodule",
    "oedema": "Edema",
    "tumor": "Neoplasm",
    "tumour": "Neoplasm",
}
_PLURAL = {"kidneys": "kidney", "lungs": "lung", "vertebrae": "vertebra", "cysts": "cyst", "eyes": "eye"}


@dataclass(frozen=True)
class Meaning:
    """What a class is, as codes of pydicom.

    Args:
        category: anatomical structure, abnormal structure, or tissue.
        type: the organ or lesion; tissue where the name is not known.
        side: left or right, where the name tells it and the code does not.
        region: the organ of a lesion.
    """

    category: Any
    type: Any
    side: Any = None
    region: Any = None


def meaning(name: str) -> Meaning:
    """Return what a label name means; general tissue for a name that is not known."""
    from pydicom.sr.codedict import codes

    parts = [_PLURAL.get(word, word) for word in words(name)]
    sides = {SIDES[word] for word in parts if word in SIDES}
    bare = " ".join(word for word in parts if word not in SIDES)
    side = sides.pop() if len(sides) == 1 else None
    sct: Any = codes.SCT
    code = None if side is None else getattr(sct, side.capitalize())
    if side and (keyword := ORGANS.get(f"{bare} {side}")):  # a chamber of the heart, say: its code tells the side
        return Meaning(sct.AnatomicalStructure, getattr(sct, keyword))
    if keyword := ORGANS.get(bare):
        return Meaning(sct.AnatomicalStructure, getattr(sct, keyword), code)
    *organ, last = bare.split() or [""]
    if keyword := LESIONS.get(last):
        region = ORGANS.get(" ".join(organ))
        found = getattr(sct, region) if region else None
        return Meaning(sct.MorphologicallyAbnormalStructure, getattr(sct, keyword), code, found)
    return Meaning(sct.Tissue, sct.Tissue, code)
