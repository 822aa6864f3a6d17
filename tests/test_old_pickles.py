"""Pickles from gpunn 0.1.0, whose classes were in other modules, are refused with advice."""

from __future__ import annotations

import base64
import pickle
import zlib

import pytest

import gpunn as gn

#: A `Dense(1, 1, "relu")` and its SGD.
MODEL = """
eNpVUU1v00AQTdqEpKGhqIiCOHIhcMgJ9YRAIpUiCLJQEUdkre2p18JeW/sRyAEJDpREmluHA/wE/gG/hJ8DY29r2rHknZ2d
ffPe28+973+2Ok3gflo5paa5WIE20wSUAcL+UbOe0cMv9IkmeD1T4QkI6zQYWnRxt3T2SmEkYpsthc1KRXjnCuTlk94xvHrr
YfHaB8hSaQn3fHsltCjAgibced3mLYX+UuSOqR0oV1SraRiXGqaFy20mtBYrwt1QQ1wqY7WLLd/DftNJOFCJbzmjRecrzboR
faNjmiy69XdK8gD7iV1VtV7cOnlMm7U/38buEwqC4OVfjua36FiKNrPer1uHT4lT7KVaJBQwAMQ8Ye24FGXCkNzzvOW+vC3v
1nPlvXYqb+4zSu1/jSIfBHKycRFf3vFemDQh3H4zP/qvf9T6Y+gd496UjwCHJpaQuBxaFy8KhnA4q90Qyl6A4DgHoVWm0lAL
CzR/9vtHHT8ND47zrApVqQtWM2o23vAAx6F/qdBrnHfOA/vGQsXP38FBWOUihoYZjj2TSMTvQbGOwfPzrNUyqLgiUmisz1QC
HxnERfIF4A0/JRRVlWcecL0BHsBKbLPHYVEWoKwrLlEZKmAyulwS+3hK039jAR7D
"""

#: An `MLPClassifier((2,), max_iter=2, random_state=0)`, fitted to XOR (without its random state).
ESTIMATOR = """
eNqFVl1sFFUU3pbd7nZpKymItqCWnwhVKVJNBcUutuCiW9YWxBeByd2Z295JZ2eGOzMtWxTwodCNV6PpNVA0hBACQQwJIA8g
oQ81moggIpqIPAAmPKBEUYkJMdFzZ2anRVo6m+zcn3O/e36+c85sCX/QHw+5D5vWYTq6XoctW80i26BWnawhy1LbVUw5K1/R
0to8PO/ntW/xN/lcVklURcG6pKEcppKl9mCLp4p7OYsj2Va7kK0aOmdhijWHsxLL0LoEWhgpKMtZBGkmQTyZqG64+sv05nks
nkG2TFwYIeTYBtysYUR1Ve+QKLJhOSYbumUj3eas8o4tSdVVG8BaMyvO3zzwD4uaRjfoJJYu+zbGsmiDpNqgQqqYRS3itLdr
mPexMop0xchKgAtXpEJsgm1oI/SKgtYZw8I8z+LdiLqC1IZZLGtksW47WRD+9WvxnGGVOvgQU6PLkoLdPlYBqmo5OGiYJmgM
Zyd3IU1VXA9J7VS4C1yVTBwfEM9OVpLBNpIWjAD2Vuph5be/z/44ddvjLIpNS9XEscZluXevPsmeZZN010BJNySZIL0DzImz
sGZYFrhOMzokb1jmBlfqxmoHsXmaRRVqmIYDzgr5D4tmsU1V2eK1LJpBcifWFRAsUXCXKmMYVYDaGNkOxRa4XnJdKhlU7VAh
4g/cxabCTskr3iCgUNQEcASKsojuZM0cJ4+mnQxgaSiDNWs0rMJOSYs3GMZyzQIOsqkuVp0kGxTXZR3NVhGlKAeWSxS7FKKO
bMNJMp9FdcXb7IfY9/LmogzfxlfyuakiQWUQiCh2zsSwzYrVhTzf5+1OYEWLeTqdfvlfeNy/VMjmmXzzpIIPi/w3h2UW7lTB
gxBFVUc0x8HESCEYnoFiIlSvbHIlminMl+k2BCY3bGEpxYoj+2mVxQheE9spcBdiq9oW7wPcmKRju9ugnZxN8aFFekJGG1lT
0JjFV+H1DlBTRVoBmpV4QnytSOs7jkGCi0ORpe47UGWiOswAEf0y4M/IBRIthM7HuaMkrMQtqz0sVuLTkN3niZuIIiCfqBSl
rcE4uDcCieNgThaR50S4yPNBsFLFWzlpYsXtI4JEXhwtRDX75p/sq3pkMFG/rrdt/5nLidaN2VnXF59L1H4/63h4z2cJL2Qd
FAnSRxQsAz2Eb8MZFVmcdHq6EH0ULWDiAAkOL7y2veXQl4MfsSXftp36wUUkuTTpyTsZJ0MkHyEDjpJTRSRKFBZ7SRFBsf14
E3LPe1JFW72bQjSUuP/iF4OHQj/lth+5OXwTKEw23gujyNM1Vnv9TN7686//6YitDKSLXxkkClUrzUolkxodEGAgatVdiTm8
F2stDAtxI9V5FiUqVEBgPyv3zgbz6HJ/FIQ5BuUTKrpBRXmSDc3J6paLUwMMTSb+WLNu/445AzBY/c7tttO9mFS46375DwaY
lWINmRZWJJfbycTBRVVlm0KhZCJ5K9KwJRTCrNxCWVODOmaKJuZKLVl59tQFlW5KLjkmTV++a/IQdqBjiOqNIYlDIn1L9KCX
lOqSD8FTMRYXmSzJDu3CfHRdoRWKwmQJh4Kbba8QBPvQCMWiKyNqbjeCixQoTnBrXDJM8De0SEiPuOdFr52GXxCvwH/xII1c
i4hG3iB58j5mMUsmUESg8xUSrrAg4tZcaK8+EKkIXAl0KJU11YTmQrOgV9ydeNmYZuV+N5G8ZEk23va7ZwTaoWl5/cHUkIy9
GuMzoNBaWLTJHwWEqROlF4om3uCaTs6JH2YV3g0SMk1N9cD68n15DPBuA3dXhMVjFAggfE31pe+GaO/mwXVrdn81+4l9CXXn
rgX9R3oGG8L1by+9stdLhDFTO/3z1vMXjvYM9hyeMhcPfDqWdJCgM/ZOTVxLbU407Xh1St2VA2PIF5LxZs3aG08PHHGl8Dh2
vNZ1jO3ccrox/Hr1jOOLpiXUE580fHNiqHHNqklLb8x+cBw7Lq1/b8/HJ4caFz928PfPNz8zrh2H5t36cH3V6caLFzbWz2Qz
x7Gjvm33vKNznvLswGR68CVDHgo+YcjDw58uUcdU3PClikX1qfsPX6tR6Q==
"""


@pytest.mark.parametrize(
    ("old", "place"),
    [(MODEL, "gpunn.layers"), (ESTIMATOR, "gpunn.losses.BinaryCrossEntropy")],
    ids=["model", "estimator"],
)
def test_an_old_pickle_is_refused_with_advice(old: str, place: str) -> None:
    pytest.importorskip("sklearn")
    data = zlib.decompress(base64.b64decode(old))
    with pytest.raises(gn.errors.MovedError, match=f"^{place} is where .*gn.load") as caught:
        pickle.loads(data)  # noqa: S301
    assert isinstance(caught.value, ImportError)


def test_other_names_are_as_unknown_as_ever() -> None:
    with pytest.raises(AttributeError, match=r"gpunn.losses.*'Losses'"):
        gn.losses.Losses  # noqa: B018
