"""One exploration run behind the recipes, on validation; recipe.jsonl holds a line a run.

    python results/exploration/recipe.py '{"name": "...", "epochs": 6, ...}' results/exploration/recipe.jsonl

A bare loop, its options a dict; bf16 unless "amp" is false, one thread of a shared machine, so that "seconds" of different
runs are not to be compared. "acc" is the single view's accuracy, "acc2" with the mirrored view; "ema_eval" is that of the
averaged weights. The first run was in fp32.
"""
import json, sys, time, datetime
import torch
from torch import nn
from torch.nn import functional as F
from fashion.data import FashionMNIST, normalise, epoch_seed
from fashion.augmentation import alternately_mirrored, shifted, erased
from fashion.optimizers import Muon, _groups, schedule_factor
from fashion.trainer import prepare_process

ACT = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU, "silu": lambda: nn.SiLU(inplace=True), "gelu_tanh": lambda: nn.GELU("tanh"), "hswish": lambda: nn.Hardswish(inplace=True)}
C = dict(stem="conv3", stemw=32, widths=[32,64,128], extra=[1,1,1], res=False, down="convpool", act="relu",
         pool="max", dirac=True, bnw=True, head_scale=1.0, dropout=0.0, se=False,
         batch=500, lr=0.08, momentum=0.6, other_lr=0.003, wd=0.01, schedule="linear", warmup=0.0,
         ls=0.1, shift=1, mirror=True, erase=0, share=0.0, fill="zero", epochs=6, seed=0, ema=0.0, cutmix=0.0, side=3, amp=True, final_clean=0, opt="muon", bn_mom=0.1, zero_last=False, skip_avg=False)

class Stage(nn.Module):
    def __init__(s, i, o, extra, c):
        super().__init__()
        down = c["down"]
        self = s
        conv = nn.Conv2d(i, o, 3, padding=1, bias=False, stride=2 if down=="stride" else 1)
        if down == "convpool": first = [conv, nn.MaxPool2d(2)]
        elif down == "poolconv": first = [nn.MaxPool2d(2), conv]
        elif down == "none": first = [conv]
        else: first = [conv]
        self.first = nn.Sequential(*first, bn(o,c), ACT[c["act"]]())
        rest = []
        for k in range(extra):
            rest += [nn.Conv2d(o,o,3,padding=1,bias=False), bn(o,c)]
            if not (c["res"] and k==extra-1): rest.append(ACT[c["act"]]())
        self.rest = nn.Sequential(*rest)
        if c["res"] and c["zero_last"] and extra: nn.init.zeros_(rest[-1].weight)
        self.res = c["res"] and extra>0
        self.act = ACT[c["act"]]()
        self.se = SE(o) if c["se"] else None
    def forward(self,x):
        x = self.first(x)
        y = self.rest(x)
        if self.se is not None: y = self.se(y)
        if self.res: y = self.act(x + y)
        return y
class SE(nn.Module):
    def __init__(s,o):
        super().__init__(); s.a=nn.Linear(o,o//4); s.b=nn.Linear(o//4,o)
    def forward(s,y):
        return y*torch.sigmoid(s.b(F.relu(s.a(y.mean((2,3))))))[:,:,None,None]*2
def bn(o,c):
    b = nn.BatchNorm2d(o, momentum=c["bn_mom"])
    if not c["bnw"]: b.weight.requires_grad=False
    return b
class Net(nn.Module):
    def __init__(self,c,images=None):
        super().__init__()
        w=c["widths"]; i=c["stemw"]
        if c["stem"]=="white":
            i=8
            conv=nn.Conv2d(1,4,2,bias=False)
            p=normalise(images[:5000]).unfold(2,2,1).unfold(3,2,1).reshape(-1,4)
            val,vec=torch.linalg.eigh((p-p.mean(0)).T@(p-p.mean(0))/len(p))
            self.register_buffer("wk", torch.cat([vec.T/ (val[:,None]+5e-4).sqrt(), -vec.T/(val[:,None]+5e-4).sqrt()]).reshape(8,1,2,2))
            self.wb=nn.Parameter(torch.zeros(8))
            self.stem=lambda x: self.sact(F.conv2d(x,self.wk,self.wb))
            self.sact=ACT[c["act"]]()
        elif c["stem"]=="conv3": self.stem=nn.Sequential(nn.Conv2d(1,i,3,padding=1,bias=False), bn(i,c), ACT[c["act"]]())
        elif c["stem"]=="conv3pool": self.stem=nn.Sequential(nn.Conv2d(1,i,3,padding=1,bias=False), nn.MaxPool2d(2), bn(i,c), ACT[c["act"]]())
        elif c["stem"]=="conv5pool": self.stem=nn.Sequential(nn.Conv2d(1,i,5,padding=2,bias=False), nn.MaxPool2d(2), bn(i,c), ACT[c["act"]]())
        elif c["stem"]=="conv4s2": self.stem=nn.Sequential(nn.Conv2d(1,i,4,stride=2,padding=1,bias=False), bn(i,c), ACT[c["act"]]())
        elif c["stem"]=="conv6s2": self.stem=nn.Sequential(nn.Conv2d(1,i,6,stride=2,padding=2,bias=False), bn(i,c), ACT[c["act"]]())
        elif c["stem"]=="conv3s2": self.stem=nn.Sequential(nn.Conv2d(1,i,3,stride=2,padding=1,bias=False), bn(i,c), ACT[c["act"]]())
        downs=c["down"] if isinstance(c["down"],list) else [c["down"]]*len(w)
        stages=[]
        for o,e,d in zip(w,c["extra"],downs):
            stages.append(Stage(i,o,e,c|{"down":d})); i=o
        self.stages=nn.Sequential(*stages)
        self.drop=nn.Dropout(c["dropout"])
        self.head=nn.Linear(i*{"both":2,"flat":c["side"]**2}.get(c["pool"],1),10)
        self.c=c
        if c["dirac"]:
            for m in self.modules():
                if isinstance(m,nn.Conv2d) and m.kernel_size==(3,3) and m.in_channels>1:
                    nn.init.dirac_(m.weight.data[:m.in_channels])
        if c["opt"]=="muon":
            pass
    def forward(self,x):
        x=self.stages(self.stem(x))
        if self.c["pool"]=="max": x=x.amax((2,3))
        elif self.c["pool"]=="avg": x=x.mean((2,3))
        elif self.c["pool"]=="flat": x=x.permute(0,2,3,1).flatten(1)
        else: x=torch.cat([x.amax((2,3)),x.mean((2,3))],1)
        return self.head(self.drop(x))*self.c["head_scale"]

def evaluate(net,images,labels):
    net.eval(); A=[];B=[]
    with torch.inference_mode():
        for p in images.split(500):
            A.append(net(normalise(p).to(memory_format=torch.channels_last))); B.append(net(normalise(p.flip(2))))
    a=torch.cat(A);b=torch.cat(B)
    net.train()
    acc=lambda z:(z.argmax(1)==labels).float().mean().item()
    return dict(acc=acc(a), acc2=acc(a.softmax(1)+b.softmax(1)), loss=F.cross_entropy(a,labels).item(), loss2=F.nll_loss(((a.softmax(1)+b.softmax(1))/2).log(),labels).item())

def main(spec, out):
    c=C|spec
    assert set(spec)-set(C) <= {"name"}, set(spec)-set(C)
    prepare_process()
    data=FashionMNIST(0,root="data",batch_size=500,val_size=10000,split_seed=0,official=True)
    data.setup("fit")
    X,Y=data.train.images,data.train.labels
    torch.manual_seed(c["seed"])
    net=Net(c,X).to(memory_format=torch.channels_last)
    nparam=sum(p.numel() for p in net.parameters())
    kernels=[p for p in net.parameters() if p.ndim==4 and p.requires_grad]
    others=[p for p in net.parameters() if p.ndim!=4 and p.requires_grad]
    opt=Muon([{"name":"k","params":kernels,"lr":c["lr"],"momentum":c["momentum"]},*_groups(others,c["wd"])],lr=c["other_lr"],fused=True)
    base=[g["lr"] for g in opt.param_groups]
    n=len(Y)//c["batch"]; steps=n*c["epochs"]; step=0
    ema=None
    def run(x):
        with torch.autocast("cpu",torch.bfloat16,enabled=c["amp"]): return net(x).float()
    t0=time.perf_counter(); traj=[]; evals=0.
    for epoch in range(c["epochs"]):
        torch.manual_seed(epoch_seed(c["seed"],epoch))
        order=torch.randperm(len(Y)); tl=0.; correct=0
        for k in range(n):
            f=schedule_factor(c["schedule"],c["warmup"],step,steps)
            for g,b in zip(opt.param_groups,base): g["lr"]=b*f
            idx=order[k*c["batch"]:(k+1)*c["batch"]]
            x,y=X[idx],Y[idx]
            if c["mirror"]: x=alternately_mirrored(x,epoch)
            if c["shift"]: x=shifted(x,c["shift"])
            share=c["share"] if epoch<c["epochs"]-c["final_clean"] else 0
            if share: x=erased(x,c["erase"],share)
            x=normalise(x)
            if c["cutmix"] and torch.rand(()) < c["cutmix"] and epoch<c["epochs"]-c["final_clean"]:
                lam=torch.rand(()).item(); side=int(28*(1-lam)**.5); cy,cx=torch.randint(28,(2,)).tolist()
                y0,y1,x0,x1=max(cy-side//2,0),min(cy+(side+1)//2,28),max(cx-side//2,0),min(cx+(side+1)//2,28)
                perm=torch.randperm(len(y)); x[:,:,y0:y1,x0:x1]=x[perm][:,:,y0:y1,x0:x1]
                lam=1-(y1-y0)*(x1-x0)/784
                out_=run(x); loss=lam*F.cross_entropy(out_,y,label_smoothing=c["ls"])+(1-lam)*F.cross_entropy(out_,y[perm],label_smoothing=c["ls"])
            else:
                out_=run(x); loss=F.cross_entropy(out_,y,label_smoothing=c["ls"])
            opt.zero_grad(); loss.backward(); opt.step(); step+=1
            tl+=loss.item(); correct+=(out_.argmax(1)==y).sum().item()
            if c["ema"]:
                if ema is None: import copy; ema=copy.deepcopy(net)
                with torch.no_grad():
                    d=min(c["ema"],step/(step+9))
                    for a,b in zip(ema.state_dict().values(),net.state_dict().values()):
                        if a.dtype.is_floating_point: a.lerp_(b,1-d)
                        else: a.copy_(b)
        train_acc=correct/(n*c["batch"])
        print(c.get("name"),epoch+1,f'train {tl/n:.4f} {train_acc:.4f}',f"{time.perf_counter()-t0:.0f}s",flush=True)
    seconds=time.perf_counter()-t0
    e=evaluate(net,data.val.images,data.val.labels)
    print(c.get("name"),e,flush=True)
    rec=dict(spec,epochs=c["epochs"],seed=c["seed"],parameters=nparam,seconds=round(seconds,1),**{k:round(v,5) for k,v in e.items()},train_acc=round(train_acc,5),
        at=datetime.datetime.now(datetime.UTC).strftime("%H:%M"))
    if ema is not None: rec["ema_eval"]={k:round(v,5) for k,v in evaluate(ema,data.val.images,data.val.labels).items()}
    with open(out,"a") as f: f.write(json.dumps(rec)+"\n")
if __name__=="__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
